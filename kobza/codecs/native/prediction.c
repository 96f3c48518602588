/* Predictions of a sample from its neighbors, and a centre between them. Twin: plain_prediction.py. */
#include "picture.h"

/* middle of W, N and W + N - NW (Martucci 1990) */
static int median_edge(int w, int n, int nw)
{
    int low = w < n ? w : n, high = w < n ? n : w;
    return nw >= high ? low : nw <= low ? high : w + n - nw;
}

static int put_taps(const Picture *m, int x, int place, int32_t *delta, int base)
{
    int n = m->channels, c = channel_at(m, place), k = 0;
    const uint16_t *r0 = m->row[0] + (x + PAD) * n + c, *r1 = m->row[1] + (x + PAD) * n + c,
                   *r2 = m->row[2] + (x + PAD) * n + c;
    const int own[10] = {r0[-n], r1[0], r1[-n], r1[n], r0[-2 * n], r2[0], r1[-2 * n], r1[2 * n], r2[n], r2[-n]};
    for (; k < 10; k++)
        delta[k] = own[k] - base;
    for (int earlier = place - 1; earlier >= 0 && earlier >= place - 2; earlier--) {
        int off = channel_at(m, earlier) - c;
        const uint16_t *a0 = r0 + off, *a1 = r1 + off;
        int middle = median_edge(a0[-n], a1[0], a1[-n]);
        const int other[5] = {a0[0], a0[-n], a1[0], a1[-n], a1[n]};
        for (int i = 0; i < 5; i++)
            delta[k++] = other[i] - middle;
    }
    return k;
}

/* normalized least mean squares (Widrow & Hoff 1960; Nagumo & Noda 1967), weights in 1/65536 */
static int filtered(Filter *f, const int32_t *delta, int taps, int base)
{
    int64_t sum = 0;
    f->energy = 16;
    for (int i = 0; i < taps; i++) {
        f->delta[i] = delta[i];
        f->energy += (int64_t)delta[i] * delta[i];
        sum += (int64_t)f->weight[i] * delta[i];
    }
    f->base = base;
    sum >>= 16;
    f->sum = (int)(sum < -131072 ? -131072 : sum > 131072 ? 131072 : sum);
    return base + f->sum;
}

static void teach(Filter *f, int taps, int sample, int rate)
{
    int64_t error = sample - f->base - f->sum, gain = ((error < 0 ? -error : error) << 24) / f->energy;
    if (error < 0)
        gain = -gain;
    for (int i = 0; i < taps; i++) {
        int64_t weight = f->weight[i] + (gain * f->delta[i] >> rate);
        f->weight[i] = (int32_t)(weight < -LONG_WEIGHT ? -LONG_WEIGHT : weight > LONG_WEIGHT ? LONG_WEIGHT : weight);
    }
}

static const int RATES[FILTERS] = {11, 14};

static int taps_of(int place)
{
    return 10 + 5 * (place > 2 ? 2 : place);
}

static void put_predictions(Picture *m, int x, int place)
{
    int n = m->channels, c = channel_at(m, place), *p = m->prediction;
    const uint16_t *r0 = m->row[0] + (x + PAD) * n + c, *r1 = m->row[1] + (x + PAD) * n + c;
    int w = r0[-n], ww = r0[-2 * n], up = r1[0], nw = r1[-n], ne = r1[n];
    int nn = m->row[2][(x + PAD) * n + c], nne = m->row[2][(x + PAD + 1) * n + c];
    p[0] = median_edge(w, up, nw);
    p[1] = w + up - nw;
    p[2] = up + ne - nne;
    p[3] = w + ne - up;
    if (place) {
        int off = channel_at(m, place - 1) - c;
        int a = r0[off], aw = r0[off - n], an = r1[off], anw = r1[off - n];
        p[6] = w + a - aw;
        p[7] = up + a - an;
        p[8] = a + median_edge(w - aw, up - an, nw - anw);
        p[9] = w + up - nw + a - aw - an + anw;
    } else {
        p[6] = 2 * w - ww;
        p[7] = 2 * up - nn;
        p[8] = (w + ne + 1) >> 1;
        p[9] = (w + up + 1) >> 1;
    }
    int32_t delta[TAPS];
    int taps = put_taps(m, x, place, delta, p[0]);
    for (int i = 0; i < FILTERS; i++)
        p[4 + i] = filtered(&m->filter[c][i], delta, taps, p[0]);
    for (int i = 0; i < PREDICTIONS; i++)
        p[i] = between(0, p[i], m->top);
}

/* mean of the predictions, each by how well it did around (Seemann & Tischer 1997) */
static int blended(const Picture *m, int x, int c)
{
    int n = m->channels;
    const uint16_t *here = m->cost[0] + ((x + PAD) * n + c) * PREDICTIONS,
                   *above = m->cost[1] + ((x + PAD) * n + c) * PREDICTIONS;
    int64_t cost[PREDICTIONS], least = INT64_MAX, whole = 0, sum = 0;
    for (int i = 0; i < PREDICTIONS; i++) {
        int step = n * PREDICTIONS;
        cost[i] = 1 + here[i - step] + above[i] + above[i + step] + above[i - step];
        if (cost[i] < least)
            least = cost[i];
    }
    for (int i = 0; i < PREDICTIONS; i++) {
        int64_t part = (least << 8) / cost[i];
        part = part * part * part >> 8;
        whole += part;
        sum += part * m->prediction[i];
    }
    return (int)((sum + whole / 2) / whole);
}

static int centre_of(const Picture *m, int x, int place)
{
    if (m->mode == PICTURE_INDEXED)
        return 0;
    if (m->mode == PICTURE_GRAPHICS)
        return m->prediction[place ? 8 : 0];
    return blended(m, x, channel_at(m, place));
}

void picture_predict(Picture *m, int x, int place)
{
    put_predictions(m, x, place);
    m->centre = centre_of(m, x, place);
}

void picture_settle(Picture *m, int x, int place)
{
    int n = m->channels, c = channel_at(m, place), at = (x + PAD) * n + c, sample = m->row[0][at];
    m->miss[0][at] = sample - m->centre;
    for (int i = 0; i < PREDICTIONS; i++)
        m->cost[0][at * PREDICTIONS + i] = (uint16_t)distance(sample, m->prediction[i]);
    for (int i = 0; i < FILTERS; i++)
        teach(&m->filter[c][i], taps_of(place), sample, RATES[i]);
}
