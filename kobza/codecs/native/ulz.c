/* The ULZ format by Ilya Muravyov (public domain): LZ77, byte aligned, window of 2^17. Twin: plain_ulz.py.
 *
 * A token byte: bits 7..5 literals before the match (7: more follow as a sum), bit 4 the 17th bit of the distance,
 * bits 3..0 match length - 4 (15: more follow as a sum); then the literals, the length's sum, the distance u16. A
 * stream may end behind literals. A sum is in base 128 with digits 128..255 for "more": value = sum digit << 7 i. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

#define MIN_MATCH 4
#define WINDOW (1 << 17)
#define SEGMENT 65536 /* positions parsed at once by the levels that search for the cheapest parse */
#define MOST_SHORT 18 /* longest match whose length fits into the token */

typedef struct {
    const uint8_t *data;
    uint32_t size;
    int hash_bits, chain;
    uint32_t nice, mask, inserted;
    uint32_t *head, *previous; /* position + 1; 0 = none */
} Finder;

typedef struct {
    uint32_t length, distance;
} Match;

static uint32_t word_at(const uint8_t *p)
{
    return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t slot(const Finder *f, uint32_t at)
{
    return word_at(f->data + at) * 0x9E3779B1u >> (32 - f->hash_bits);
}

static int finder_make(Finder *f, const uint8_t *data, size_t size, int level)
{
    int bits = 8;
    uint32_t window = 256;
    while (bits < 17 && (size_t)1 << bits < size)
        bits++;
    while (window < WINDOW && window < size)
        window <<= 1;
    *f = (Finder){.data = data, .size = (uint32_t)size, .hash_bits = bits, .mask = window - 1};
    f->chain = level < 8 ? 1 << level : level == 8 ? 256 : 4096;
    f->nice = level < 5 ? 32 : level < 8 ? 128 : 512;
    f->head = calloc((size_t)1 << bits, sizeof *f->head);
    f->previous = malloc(window * sizeof *f->previous);
    return f->head && f->previous ? KERNEL_OK : KERNEL_NO_MEMORY;
}

static void finder_free(Finder *f)
{
    free(f->head);
    free(f->previous);
}

/* make every position before `end` known */
static void insert_until(Finder *f, uint32_t end)
{
    uint32_t last = f->size >= MIN_MATCH ? f->size - MIN_MATCH + 1 : 0;
    end = end < last ? end : last;
    for (; f->inserted < end; f->inserted++) {
        uint32_t *head = f->head + slot(f, f->inserted);
        f->previous[f->inserted & f->mask] = *head;
        *head = f->inserted + 1;
    }
}

static uint32_t common(const uint8_t *a, const uint8_t *b, uint32_t most)
{
    uint32_t n = 0;
    while (n + 8 <= most) {
        uint64_t x, y;
        memcpy(&x, a + n, 8);
        memcpy(&y, b + n, 8);
        if (x != y)
            break;
        n += 8;
    }
    while (n < most && a[n] == b[n])
        n++;
    return n;
}

/* the longest match at `at`, of equals the nearest, no longer than `most`; length 0 when there is none of 4 */
static Match longest(Finder *f, uint32_t at, uint32_t most)
{
    Match best = {0, 0};
    insert_until(f, at);
    if (most < MIN_MATCH)
        return best;
    const uint8_t *here = f->data + at;
    uint32_t next = f->head[slot(f, at)], length = MIN_MATCH - 1;
    for (int left = f->chain; next && left; left--) {
        uint32_t from = next - 1;
        if (at - from >= WINDOW)
            break;
        const uint8_t *there = f->data + from;
        if (there[length] == here[length] && word_at(there) == word_at(here)) {
            uint32_t n = common(there, here, most);
            if (n > length) {
                length = n;
                best = (Match){n, at - from};
                if (n >= f->nice || n == most)
                    break;
            }
        }
        next = f->previous[from & f->mask];
    }
    return best;
}

static uint8_t *put_sum(uint8_t *out, uint32_t value)
{
    while (value >= 128) {
        value -= 128;
        *out++ = (uint8_t)(128 | (value & 127));
        value >>= 7;
    }
    *out++ = (uint8_t)value;
    return out;
}

static uint32_t sum_size(uint32_t value)
{
    uint32_t n = 1;
    for (; value >= 128; n++)
        value = (value - 128) >> 7;
    return n;
}

static uint8_t *put_literals(uint8_t *out, const uint8_t *from, uint32_t run, int rest)
{
    *out++ = (uint8_t)((run < 7 ? run : 7) << 5 | rest);
    if (run >= 7)
        out = put_sum(out, run - 7);
    memcpy(out, from, run);
    return out + run;
}

static uint8_t *put_match(uint8_t *out, const uint8_t *literals, uint32_t run, Match match)
{
    uint32_t extra = match.length - MIN_MATCH;
    int rest = (int)(match.distance >> 12 & 16) | (int)(extra < 15 ? extra : 15);
    out = put_literals(out, literals, run, rest);
    if (extra >= 15)
        out = put_sum(out, extra - 15);
    *out++ = (uint8_t)match.distance;
    *out++ = (uint8_t)(match.distance >> 8);
    return out;
}

/* levels 1 to 7: the longest match here, or from level 5 on one byte later if that is longer */
static uint8_t *parse_greedy(Finder *f, int is_lazy, uint8_t *out)
{
    uint32_t at = 0, run = 0;
    while (at < f->size) {
        Match match = longest(f, at, f->size - at);
        if (match.length && is_lazy && match.length < f->nice && at + 1 < f->size &&
            longest(f, at + 1, f->size - at - 1).length > match.length)
            match.length = 0;
        if (!match.length) {
            at++;
            run++;
            continue;
        }
        out = put_match(out, f->data + at - run, run, match);
        at += match.length;
        run = 0;
    }
    return run ? put_literals(out, f->data + at - run, run, 0) : out;
}

typedef struct {
    Match found[SEGMENT];
    uint32_t cost[SEGMENT + 1]; /* bytes from here to the segment's end, no literals pending */
    uint32_t take[SEGMENT];     /* length of the cheapest match */
    uint8_t literal[SEGMENT];   /* bit r: with r literals pending (7: or more), a literal is cheaper */
} Segment;

static void find_all(Finder *f, uint32_t at, uint32_t n, Match *found)
{
    for (uint32_t i = 0; i < n; i++) {
        found[i] = longest(f, at + i, n - i);
        while (found[i].length >= f->nice && i + 1 < n) {
            found[i + 1] = (Match){found[i].length - 1, found[i].distance};
            i++;
        }
    }
}

static uint32_t cheapest(const Segment *s, uint32_t i, uint32_t *take)
{
    uint32_t length = s->found[i].length, best = UINT32_MAX;
    for (uint32_t l = MIN_MATCH; l <= length && l <= MOST_SHORT; l++)
        if (3 + s->cost[i + l] <= best) {
            best = 3 + s->cost[i + l];
            *take = l;
        }
    if (length > MOST_SHORT) {
        uint32_t cost = 3 + sum_size(length - MOST_SHORT - 1) + s->cost[i + length];
        if (cost <= best) {
            best = cost;
            *take = length;
        }
    }
    return best;
}

static void price(Segment *s, uint32_t n)
{
    uint32_t pending[9] = {0};
    s->cost[n] = 0;
    for (uint32_t i = n; i--;) {
        uint32_t match = cheapest(s, i, &s->take[i]);
        s->literal[i] = 0;
        for (int r = 0; r < 8; r++) {
            uint32_t literal = 1 + (r == 6) + pending[r < 7 ? r + 1 : 7];
            if (literal < match)
                s->literal[i] |= (uint8_t)(1 << r);
            pending[r] = literal < match ? literal : match;
        }
        s->cost[i] = pending[0];
    }
}

/* levels 8 and 9: the cheapest parse of each segment, literal runs counted with their token */
static uint8_t *parse_cheapest(Finder *f, Segment *s, uint8_t *out)
{
    uint32_t run = 0;
    for (uint32_t begin = 0; begin < f->size; begin += SEGMENT) {
        uint32_t n = f->size - begin < SEGMENT ? f->size - begin : SEGMENT;
        find_all(f, begin, n, s->found);
        price(s, n);
        for (uint32_t i = 0; i < n;) {
            if (s->literal[i] >> (run < 7 ? run : 7) & 1) {
                run++;
                i++;
                continue;
            }
            Match match = {s->take[i], s->found[i].distance};
            out = put_match(out, f->data + begin + i - run, run, match);
            i += match.length;
            run = 0;
        }
    }
    return run ? put_literals(out, f->data + f->size - run, run, 0) : out;
}

size_t ulz_bound(size_t size)
{
    return size + size / 64 + 16;
}

int ulz_encode(const uint8_t *data, size_t size, int level, uint8_t *out, size_t *out_size)
{
    Finder finder;
    Segment *segment = level >= 8 ? malloc(sizeof *segment) : NULL;
    int state = finder_make(&finder, data, size, level);
    if (level >= 8 && !segment)
        state = KERNEL_NO_MEMORY;
    if (state == KERNEL_OK) {
        uint8_t *end = level < 8 ? parse_greedy(&finder, level >= 5, out) : parse_cheapest(&finder, segment, out);
        *out_size = (size_t)(end - out);
    }
    finder_free(&finder);
    free(segment);
    return state;
}

/* value of a sum, or -1 when the input ends or it is too large to be one */
static int64_t take_sum(const uint8_t **in, const uint8_t *end)
{
    int64_t value = 0;
    for (int shift = 0; shift <= 28; shift += 7) {
        if (*in == end)
            return -1;
        int64_t digit = *(*in)++;
        value += digit << shift;
        if (digit < 128)
            return value;
    }
    return -1;
}

/* 16 bytes at a time where there is room behind both ends, for their last step may write past n */
static void copy_run(uint8_t *to, const uint8_t *from, size_t n, int has_room)
{
    if (!has_room) {
        memcpy(to, from, n);
        return;
    }
    for (size_t i = 0; i < n; i += 16)
        memcpy(to + i, from + i, 16);
}

static void copy_match(uint8_t *to, size_t distance, size_t n, size_t room)
{
    const uint8_t *from = to - distance;
    if (distance >= 16 && room >= n + 16)
        for (size_t i = 0; i < n; i += 16)
            memcpy(to + i, from + i, 16);
    else if (distance >= 8 && room >= n + 8)
        for (size_t i = 0; i < n; i += 8)
            memcpy(to + i, from + i, 8);
    else if (distance == 1)
        memset(to, *from, n);
    else
        for (size_t i = 0; i < n; i++)
            to[i] = from[i];
}

int ulz_decode(const uint8_t *data, size_t size, uint8_t *out, size_t out_size)
{
    const uint8_t *in = data, *in_end = data + size;
    uint8_t *to = out, *to_end = out + out_size;
    while (in < in_end) {
        int token = *in++;
        if (token >= 32) {
            int64_t run = token >> 5, more = 0;
            if (run == 7 && (more = take_sum(&in, in_end)) < 0)
                return KERNEL_CORRUPT;
            run += more;
            if (run > in_end - in || run > to_end - to)
                return KERNEL_CORRUPT;
            copy_run(to, in, (size_t)run, in_end - in >= run + 16 && to_end - to >= run + 16);
            to += run;
            in += run;
            if (in == in_end)
                break;
        }
        int64_t length = (token & 15) + MIN_MATCH, more = 0;
        if (length == 15 + MIN_MATCH && (more = take_sum(&in, in_end)) < 0)
            return KERNEL_CORRUPT;
        length += more;
        if (in_end - in < 2)
            return KERNEL_CORRUPT;
        ptrdiff_t distance = (token & 16) << 12 | in[0] | in[1] << 8;
        in += 2;
        if (!distance || distance > to - out || length > to_end - to)
            return KERNEL_CORRUPT;
        copy_match(to, (size_t)distance, (size_t)length, (size_t)(to_end - to));
        to += length;
    }
    return to == to_end ? KERNEL_OK : KERNEL_CORRUPT;
}
