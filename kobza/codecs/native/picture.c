/* Pictures, sample by sample: predictions, a centre between them, the distance from it by context mixing; whole pixels
 * first as one of a few candidates where colors repeat. Twin: plain_picture.py, which explains the parts. */
#include "picture.h"

#include <stdlib.h>
#include <string.h>

/* ---- contexts ---- */

static void put_exact(Picture *m, int x)
{
    const uint64_t *c0 = m->color[0] + x + PAD, *c1 = m->color[1] + x + PAD, *c2 = m->color[2] + x + PAD;
    uint64_t *g = m->exact, w = c0[-1], n = c1[0];
    g[0] = scatter(0, w);
    g[1] = scatter(1, n);
    g[2] = scatter(g[0], n);
    g[3] = scatter(g[2], c1[-1]);
    g[4] = scatter(g[2], c1[1]);
    g[5] = scatter(g[3], c1[1]);
    g[6] = scatter(g[5], c0[-2]);
    g[7] = scatter(g[6], c2[0]);
    g[8] = scatter(scatter(g[7], c1[-2]), c1[2]);
    g[9] = scatter(scatter(scatter(g[8], c0[-3]), c2[-1]), c2[1]);
    g[10] = scatter(scatter(g[0], c0[-2]), c0[-3]);
    g[11] = scatter(scatter(g[1], c2[0]), m->color[3][x + PAD]);
    g[12] = scatter(scatter(g[9], c0[-4]), m->color[3][x + PAD]);
    g[13] = scatter(scatter(g[1], (uint64_t)x), 13);
}

/* where the same colors stood around before */
static void repeated_contexts(const Picture *m, int x, int place, uint64_t *h)
{
    int n = m->channels, c = channel_at(m, place), at = (x + PAD) * n + c, p = m->centre, k = 0;
    const uint16_t *r0 = m->row[0] + at, *r1 = m->row[1] + at;
    uint64_t known = (uint64_t)c;
    for (int i = 0; i < place; i++)
        known = scatter(known, r0[channel_at(m, i) - c]);
    for (; k < EXACT; k++)
        h[k] = scatter(m->exact[k], known);
    h[k++] = packed(step_of(r1[0] - p), step_of(r1[n] - p), step_of(r0[-n] - p), c);
    h[k++] = scatter(known, 77);
}

/* how neighbors, predictions and earlier misses lie to the centre */
static void smooth_contexts(const Picture *m, int x, int place, uint64_t *h)
{
    int n = m->channels, c = channel_at(m, place), at = (x + PAD) * n + c, k = 0;
    const uint16_t *r0 = m->row[0] + at, *r1 = m->row[1] + at;
    const int32_t *e0 = m->miss[0] + at, *e1 = m->miss[1] + at;
    int p = m->centre, w = r0[-n] - p, up = r1[0] - p, nw = r1[-n] - p, ne = r1[n] - p;
    int nn = m->row[2][at] - p, ww = r0[-2 * n] - p, fine = m->energy, coarse = fine / 2;
    int a = step_of(place ? e0[channel_at(m, place - 1) - c] : 0);
    int b = step_of(place > 1 ? e0[channel_at(m, place - 2) - c] : 0), q[PREDICTIONS];
    for (int i = 0; i < PREDICTIONS; i++)
        q[i] = step_of(m->prediction[i] - p);
    int pattern = (w > 0) | (up > 0) << 1 | (nw > 0) << 2 | (ne > 0) << 3 | (ww > 0) << 4 | (nn > 0) << 5 |
                  (2 * up - nn > 0) << 6 | (2 * w - ww > 0) << 7;
    h[k++] = packed(q[5], fine, c, 0);
    h[k++] = packed(q[0], q[8], c, coarse / 2);
    h[k++] = packed(q[6], q[7], c, a / 2);
    h[k++] = packed(q[1], q[9], c, 0);
    h[k++] = packed(q[2], q[3], c, 0);
    h[k++] = packed(a, b, c, coarse);
    h[k++] = packed(step_of(e0[-n]), step_of(e1[0]), c, a / 2);
    h[k++] = packed(step_of(e1[0]), step_of(e1[n]), c, step_of(e0[-n]));
    h[k++] = packed(step_of(e0[-n]), step_of(e0[-2 * n]), c, step_of(e1[-n]));
    h[k++] = packed(step_of(nw), step_of(ne), c, coarse);
    h[k++] = packed(step_of(ww), step_of(nn), c, coarse);
    h[k++] = packed(pattern, coarse, c, a);
    h[k++] = packed(q[4], q[5], c, step_of(e0[-n]));
    h[k++] = packed(step_of(w), c, a, fine);
    h[k++] = packed(step_of(up), c, a, fine);
    h[k++] = packed(r0[-n], r1[0], c, 0);
}

static void sample_contexts(Picture *m, int x, int place, uint64_t *h)
{
    int n = m->channels, c = channel_at(m, place), at = (x + PAD) * n + c, p = m->centre, k = 0;
    const int32_t *e0 = m->miss[0] + at, *e1 = m->miss[1] + at;
    int a = step_of(place ? e0[channel_at(m, place - 1) - c] : 0);
    m->energy = step_of(distance(e0[-n], 0) + distance(e1[0], 0) + distance(e1[n], 0) + distance(e1[-n], 0));
    int coarse = m->energy / 2;
    h[k++] = packed(m->energy, c, a, 0);
    h[k++] = packed(step_of(m->row[0][at - n] - p), step_of(m->row[1][at] - p), c, coarse / 2);
    h[k++] = packed(step_of(m->prediction[4] - p), a, c, coarse);
    h[k++] = packed(p, c, a, 0);
    if (m->mode == PICTURE_PHOTO)
        smooth_contexts(m, x, place, h + k);
    else
        repeated_contexts(m, x, place, h + k);
}

/* ---- a sample as decisions ---- */

static int fold(const Picture *m, int sample)
{
    int p = m->centre, room = p < m->top - p ? p : m->top - p, off = sample - p;
    if (distance(off, 0) > room)
        return distance(off, 0) + room;
    return off > 0 ? 2 * off - 1 : -2 * off;
}

static int unfold(const Picture *m, int z)
{
    int p = m->centre, room = p < m->top - p ? p : m->top - p;
    if (z > 2 * room)
        return room == p ? p + (z - room) : p - (z - room);
    return z & 1 ? p + (z + 1) / 2 : p - z / 2;
}

static int decide(Picture *m, int place, int node, int number, int bit)
{
    int energy = between(0, m->energy, 31), off = step_of(m->prediction[5] - m->prediction[0]);
    Decision d = {node, {place << 5 | number, (energy < 15 ? energy : 15) << 4 | (number & 15), 0}, energy << 5 | number};
    d.row[2] = between(0, off + 8, 15) << 4 | (number & 15);
    return network_code(m->net, &d, bit);
}

/* how many bits the folded distance has, by as many decisions; then those below the first, from above */
static int code_folded(Picture *m, int place, uint64_t *hashes, int z)
{
    int bits = 0;
    network_look_up(m->net, hashes);
    while (bits < m->depth && decide(m, place, 1 + (bits < 14 ? bits : 14), bits < 14 ? bits : 14, z >> bits > 0))
        bits++;
    if (bits < 2)
        return bits;
    for (int i = 0; i < m->net->contexts; i++)
        hashes[i] = scatter(hashes[i], (uint64_t)bits + 1000);
    network_look_up(m->net, hashes);
    int value = 1, node = 1;
    for (int k = bits - 2; k >= 0; k--) {
        int bit = decide(m, place, node, 15 + node, z >> k & 1);
        value = value << 1 | bit;
        node = node < 4 ? node << 1 | bit : 8 + (k & 7);
    }
    return value;
}

static int code_sample(Picture *m, int x, int place, int sample)
{
    int n = m->channels, c = channel_at(m, place), at = (x + PAD) * n + c;
    uint64_t hashes[CONTEXTS];
    picture_predict(m, x, place);
    sample_contexts(m, x, place, hashes);
    sample = unfold(m, code_folded(m, place, hashes, fold(m, sample)));
    sample = between(0, sample, m->top);
    m->row[0][at] = (uint16_t)sample;
    return sample;
}

/* ---- a whole pixel as one of a few candidates ---- */

static const int LEVEL_OF[LEVELS] = {12, 9, 6, 3}; /* the neighborhood of each level */

static Memory *remembered(Picture *m, int level)
{
    uint64_t hash = m->exact[LEVEL_OF[level]] * PHI;
    return m->memory[level] + (size_t)(hash >> (64 - m->memory_bits));
}

static uint32_t check_of(const Picture *m, int level)
{
    return (uint32_t)(m->exact[LEVEL_OF[level]] * PHI) | 1;
}

static void add_candidate(Picture *m, uint64_t color)
{
    for (int i = 0; i < m->candidates; i++)
        if (m->candidate[i] == color)
            return;
    if (m->candidates < CANDIDATES)
        m->candidate[m->candidates++] = color;
}

static void find_candidates(Picture *m, int x)
{
    const uint64_t *c0 = m->color[0] + x + PAD, *c1 = m->color[1] + x + PAD;
    m->candidates = 0;
    m->level = LEVELS;
    m->certainty = 0;
    for (int level = 0; level < LEVELS; level++) {
        const Memory *found = remembered(m, level);
        if (found->check != check_of(m, level))
            continue;
        if (m->level == LEVELS) {
            m->level = level;
            m->certainty = (int)found->count;
        }
        add_candidate(m, found->color);
    }
    add_candidate(m, c0[-1]);
    add_candidate(m, c1[0]);
    add_candidate(m, c1[1]);
    add_candidate(m, c1[-1]);
}

static void remember(Picture *m, uint64_t color)
{
    for (int level = 0; level < LEVELS; level++) {
        Memory *found = remembered(m, level);
        if (found->check != check_of(m, level))
            *found = (Memory){color, check_of(m, level), 1};
        else if (found->color == color)
            found->count += found->count < 15;
        else if (found->count > 3)
            found->count = found->count / 2;
        else
            *found = (Memory){color, check_of(m, level), 1};
    }
}

static int where(const Picture *m, int x, uint64_t color)
{
    const uint64_t *c0 = m->color[0] + x + PAD, *c1 = m->color[1] + x + PAD;
    return (color == c0[-1]) | (color == c1[0]) << 1 | (color == c1[-1]) << 2 | (color == c1[1]) << 3;
}

static void pixel_contexts(Picture *m, int x, uint64_t *h)
{
    const uint8_t *h0 = m->hits[0] + x + PAD, *h1 = m->hits[1] + x + PAD;
    int around = h0[-1] | h1[0] << 2 | h1[-1] << 4 | h1[1] << 6, first = where(m, x, m->candidate[0]);
    int state = m->level << 4 | m->certainty, k = EXACT;
    for (int i = 0; i < EXACT; i++)
        h[i] = scatter(m->exact[i], 99);
    h[k++] = packed(state, first, around, 1);
    h[k++] = packed(state, step_of(m->run), 0, 2);
    h[k++] = packed(around, h0[-2] | h1[2] << 2, first, 3);
    h[k++] = scatter(packed(state, 0, 0, 4), m->candidate[0]);
    h[k++] = scatter(scatter(packed(0, 0, 0, 5), m->candidate[0]), m->candidates > 1 ? m->candidate[1] : 0);
    h[k++] = scatter(scatter(packed(m->level, 0, 0, 6), m->candidate[0]), m->color[0][x + PAD - 1]);
}

static uint64_t color_at(const Picture *m, int x)
{
    uint64_t color = 0;
    for (int c = 0; c < m->channels; c++)
        color |= (uint64_t)m->row[0][(x + PAD) * m->channels + c] << 16 * c;
    return color;
}

static void put_color(Picture *m, int x, uint64_t color)
{
    for (int c = 0; c < m->channels; c++)
        m->row[0][(x + PAD) * m->channels + c] = (uint16_t)(color >> 16 * c);
    m->color[0][x + PAD] = color;
}

/* which candidate it is; CANDIDATES when none */
static int code_candidate(Picture *m, int x, uint64_t color)
{
    uint64_t hashes[CONTEXTS];
    const uint8_t *h0 = m->hits[0] + x + PAD, *h1 = m->hits[1] + x + PAD;
    int around = (h0[-1] > 0) | (h1[0] > 0) << 1 | (h1[-1] > 0) << 2 | (h1[1] > 0) << 3;
    pixel_contexts(m, x, hashes);
    network_look_up(m->net, hashes);
    for (int i = 0; i < m->candidates; i++) {
        int state = m->level << 4 | m->certainty, first = where(m, x, m->candidate[i]);
        Decision d = {1 + i, {128 + i * 16 + first, i << 4 | around, 0}, 1024 + (i << 8 | around << 4 | first)};
        d.row[2] = state + i * 80;
        if (network_code(m->net, &d, color == m->candidate[i]))
            return i;
    }
    return CANDIDATES;
}

static void code_pixel(Picture *m, int x, uint64_t color)
{
    int hit = CANDIDATES;
    if (m->mode != PICTURE_PHOTO) {
        put_exact(m, x);
        find_candidates(m, x);
        hit = code_candidate(m, x, color);
        m->hits[0][x + PAD] = (uint8_t)hit;
        m->run = hit ? 0 : m->run + (m->run < 65535);
        if (hit < CANDIDATES)
            put_color(m, x, m->candidate[hit]);
    }
    for (int place = 0; place < m->channels; place++) {
        if (hit == CANDIDATES) {
            code_sample(m, x, place, (int)(color >> 16 * channel_at(m, place) & 65535));
            picture_settle(m, x, place);
        } else {
            m->miss[0][(x + PAD) * m->channels + place] = 0;
        }
    }
    if (m->mode != PICTURE_PHOTO) {
        m->color[0][x + PAD] = color_at(m, x);
        remember(m, m->color[0][x + PAD]);
    }
}

/* ---- rows ---- */

static void rotate(void **rows, int count)
{
    void *last = rows[count - 1];
    memmove(rows + 1, rows, (size_t)(count - 1) * sizeof *rows);
    rows[0] = last;
}

/* the present row becomes the one above, its ends repeated; the new one begins as that one did */
static void next_row(Picture *m)
{
    int n = m->channels, end = m->width + PAD;
    for (int i = 0; i < PAD; i++) {
        for (int c = 0; c < n; c++)
            m->row[0][(end + i) * n + c] = m->row[0][(end - 1) * n + c];
        m->color[0][end + i] = m->color[0][end - 1];
    }
    rotate((void **)m->row, ROWS);
    rotate((void **)m->color, ROWS);
    rotate((void **)m->miss, 2);
    rotate((void **)m->cost, 2);
    rotate((void **)m->hits, 2);
    for (int i = 0; i < PAD; i++) {
        memcpy(m->row[0] + i * n, m->row[1] + PAD * n, (size_t)n * sizeof **m->row);
        m->color[0][i] = m->color[1][PAD];
    }
}

static void *piece(uint8_t **at, size_t size)
{
    void *begin = *at;
    *at += (size + 15) & ~(size_t)15;
    return begin;
}

static int take_arena(Picture *m)
{
    size_t pixels = (size_t)m->width + 2 * PAD, samples = pixels * (size_t)m->channels;
    size_t memory = m->mode == PICTURE_PHOTO ? 0 : sizeof(Memory) << m->memory_bits;
    size_t whole = ROWS * (samples * 2 + pixels * 8) + 2 * (samples * (4 + 2 * PREDICTIONS) + pixels) +
                   LEVELS * memory + 64 * 16;
    uint8_t *at = m->arena = calloc(1, whole);
    if (!at)
        return 0;
    for (int i = 0; i < ROWS; i++) {
        m->row[i] = piece(&at, samples * 2);
        m->color[i] = piece(&at, pixels * 8);
    }
    for (int i = 0; i < 2; i++) {
        m->miss[i] = piece(&at, samples * 4);
        m->cost[i] = piece(&at, samples * 2 * PREDICTIONS);
        m->hits[i] = piece(&at, pixels);
    }
    for (int i = 0; i < LEVELS; i++)
        m->memory[i] = piece(&at, memory);
    return 1;
}

static void picture_free(Picture *m)
{
    if (m->net)
        network_free(m->net);
    free(m->arena);
    free(m);
}

static Picture *picture_make(const PictureShape *shape)
{
    Picture *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->width = shape->width;
    m->channels = shape->channels;
    m->depth = shape->depth;
    m->mode = shape->mode;
    m->top = (1 << m->depth) - 1;
    int scale = log2_above((size_t)shape->width * (size_t)shape->height * (size_t)shape->channels);
    m->memory_bits = between(8, scale, 18);
    m->net = network_make(CONTEXTS, between(8, scale + 2, 19), m->mode == PICTURE_PHOTO ? 90 : 300);
    if (!m->net || !take_arena(m)) {
        picture_free(m);
        return NULL;
    }
    return m;
}

static uint64_t read_color(const Picture *m, const uint8_t *samples)
{
    uint64_t color = 0;
    for (int c = 0; c < m->channels; c++)
        color |= (uint64_t)(m->depth > 8 ? samples[2 * c] << 8 | samples[2 * c + 1] : samples[c]) << 16 * c;
    return color;
}

static void write_pixel(const Picture *m, int x, uint8_t *samples)
{
    const uint16_t *from = m->row[0] + (x + PAD) * m->channels;
    for (int c = 0; c < m->channels; c++) {
        if (m->depth > 8)
            *samples++ = (uint8_t)(from[c] >> 8);
        *samples++ = (uint8_t)from[c];
    }
}

int picture_encode(const uint8_t *samples, const PictureShape *shape, uint8_t *out, size_t room, size_t *out_size)
{
    Picture *m = picture_make(shape);
    if (!m)
        return KERNEL_NO_MEMORY;
    size_t step = (size_t)m->channels * (m->depth > 8 ? 2 : 1);
    coder_write_to(&m->net->coder, out, room);
    for (int y = 0; y < shape->height && m->net->coder.at < room; y++, next_row(m))
        for (int x = 0; x < m->width; x++, samples += step)
            code_pixel(m, x, read_color(m, samples));
    *out_size = coder_finish(&m->net->coder);
    picture_free(m);
    return KERNEL_OK;
}

int picture_decode(const uint8_t *data, size_t size, const PictureShape *shape, uint8_t *samples)
{
    Picture *m = picture_make(shape);
    if (!m)
        return KERNEL_NO_MEMORY;
    size_t step = (size_t)m->channels * (m->depth > 8 ? 2 : 1);
    coder_read_from(&m->net->coder, data, size);
    for (int y = 0; y < shape->height; y++, next_row(m))
        for (int x = 0; x < m->width; x++, samples += step) {
            code_pixel(m, x, 0);
            write_pixel(m, x, samples);
        }
    picture_free(m);
    return KERNEL_OK;
}
