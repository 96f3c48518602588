/* Glyphs by the pixels around, by earlier glyphs that agree so far, by rows seen before and by symmetry; see glyphs.h.
 * After Howard, Kossentini, Martins, Forchhammer & Rucklidge (1998), "The emerging JBIG2 standard",
 * doi:10.1109/76.735380, for templates and glyphs that agree softly, and Mahoney's paq8 for mixing. */
#include "glyphs.h"
#include "kernels.h"
#include "network.h"

#include <stdlib.h>
#include <string.h>

#define CONTEXTS 22
#define INPUTS 48 /* 2 per context, a constant; padded to a multiple of 8 */
#define SETS 4
#define PICKS 1024
#define FINALS 4096
#define WINDOW 1024 /* earlier glyphs that are compared */
#define UP 8        /* rows above that are looked at */
#define NONE SIZE_MAX

#if defined(__GNUC__)
#define FETCH(address) __builtin_prefetch(address)
#else
#define FETCH(address) (void)0
#endif

/* what else a pixel may be like: the glyphs that agree best lately, second best, best in all, and the one before;
 * then single rows: the one behind an equal beginning, the one behind three equal rows, the one mirrored */
enum { BEST, SECOND, WHOLE, BEFORE, BEGINNING, BEHIND, MIRRORED, LIKES };
#define GLYPHS_ALIKE 4

typedef struct {
    const GlyphShape *shapes;
    size_t count, *first; /* first row of each glyph */
    uint64_t *canvas;     /* rows, moved right by `left` */
    uint32_t *table[CONTEXTS], *seen;
    int table_bits, seen_bits;
    uint32_t map[CONTEXTS][256];
    int16_t weight[SETS][PICKS][INPUTS], last_weight[PICKS][8];
    uint16_t final[2][FINALS][33];
    BitCoder coder;
    size_t glyph, at; /* the present glyph and row */
    int x, y;
    uint64_t row, up[UP + 1], inked, prefix; /* inked: columns with a pixel so far */
    uint32_t lately[WINDOW], in_all[WINDOW]; /* pixels in which a glyph differs so far */
    size_t alike[GLYPHS_ALIKE];
    uint64_t above[GLYPHS_ALIKE], like[LIKES], below[GLYPHS_ALIKE];
    int known[LIKES], missed[LIKES], run, axis, axis_row, axis_all; /* an axis is the sum of both places */
    uint32_t *slot[CONTEXTS];
} Glyphs;

/* pixels x - 4 .. x + 4 of what is looked at, and the bits of it that several contexts take */
typedef struct {
    uint32_t left, up[UP + 1], above[GLYPHS_ALIKE], like[LIKES], below[GLYPHS_ALIKE];
    uint32_t likely, near, missed[LIKES], mirror_row, mirror_all;
} Sight;

static uint64_t row_at(const Glyphs *g, size_t glyph, int y)
{
    int at = y - g->shapes[glyph].top;
    return at < 0 || at >= g->shapes[glyph].height ? 0 : g->canvas[g->first[glyph] + (size_t)at];
}

static uint32_t ones(uint64_t x)
{
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    return (uint32_t)(((x + (x >> 4)) & 0x0F0F0F0F0F0F0F0Fu) * 0x0101010101010101u >> 56);
}

static uint32_t around(uint64_t row, int x)
{
    return (uint32_t)((x >= 4 ? row << (x - 4) : row >> (4 - x)) >> 55);
}

/* of nine pixels those up to `left` before and `right` behind the one in the middle */
static uint32_t part(uint32_t nine, int left, int right)
{
    return nine >> (4 - right) & ((1u << (left + right + 1)) - 1);
}

static uint32_t few(uint32_t n, uint32_t most)
{
    return n < most ? n : most;
}

static void glyphs_free(Glyphs *g)
{
    if (!g)
        return;
    for (int i = 0; i < CONTEXTS; i++)
        free(g->table[i]);
    free(g->seen);
    free(g->canvas);
    free(g->first);
    free(g);
}

static void fill(Glyphs *g)
{
    for (uint32_t state = 0; state < 256; state++) {
        uint32_t zeros = state >> 4, all = zeros + (state & 15);
        for (int i = 0; i < CONTEXTS; i++)
            g->map[i][state] = ((all - zeros) * 5 + 2) * 4194303u / (all * 5 + 4) << 10;
    }
    for (int pick = 0; pick < PICKS; pick++) {
        for (int set = 0; set < SETS; set++) {
            for (int i = 0; i < 2 * CONTEXTS; i++)
                g->weight[set][pick][i] = i & 1 ? 1000 : 2000;
            g->last_weight[pick][set] = 32768 / SETS;
        }
    }
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < FINALS; i++)
            for (int k = 0; k < 33; k++)
                g->final[n][i][k] = (uint16_t)squash((k - 16) * 128);
}

static Glyphs *glyphs_make(const GlyphShape *shapes, size_t count)
{
    Glyphs *g = calloc(1, sizeof *g);
    if (!g || !(g->first = malloc((count + 1) * sizeof *g->first))) {
        free(g);
        return NULL;
    }
    g->shapes = shapes;
    g->count = count;
    size_t rows = 0, pixels = 0;
    for (size_t i = 0; i < count; i++) {
        g->first[i] = rows;
        rows += shapes[i].height;
        pixels += (size_t)shapes[i].height * shapes[i].width;
    }
    g->table_bits = between(10, log2_above(pixels) + 1, 20);
    g->seen_bits = between(8, log2_above(rows) + 1, 20);
    g->canvas = malloc((rows + 1) * sizeof *g->canvas);
    g->seen = calloc((size_t)1 << g->seen_bits, sizeof *g->seen);
    int is_made = g->canvas && g->seen;
    for (int i = 0; i < CONTEXTS; i++)
        is_made &= (g->table[i] = calloc((size_t)1 << g->table_bits, sizeof *g->table[i])) != NULL;
    if (!is_made) {
        glyphs_free(g);
        return NULL;
    }
    fill(g);
    return g;
}

/* the glyphs of the window that differ least after this row; at a glyph's begin (`row` NULL) only in width */
static void rank(Glyphs *g, const uint64_t *row)
{
    size_t oldest = g->glyph > WINDOW ? g->glyph - WINDOW : 0, best[3] = {NONE, NONE, NONE};
    uint32_t least[3] = {UINT32_MAX, UINT32_MAX, UINT32_MAX};
    const GlyphShape *mine = g->shapes + g->glyph;
    for (size_t n = g->glyph; n-- > oldest;) {
        uint32_t *lately = g->lately + n % WINDOW, *in_all = g->in_all + n % WINDOW;
        if (row) {
            uint32_t off = 8 * ones(*row ^ row_at(g, n, g->y));
            *lately += off - (*lately >> 2);
            *in_all += off;
        } else {
            int is_alike = mine->width == g->shapes[n].width && mine->left == g->shapes[n].left;
            *lately = *in_all = is_alike ? 0 : 64;
        }
        if (*lately < least[0]) {
            least[1] = least[0], best[1] = best[0];
            least[0] = *lately, best[0] = n;
        } else if (*lately < least[1]) {
            least[1] = *lately, best[1] = n;
        }
        if (*in_all < least[2])
            least[2] = *in_all, best[2] = n;
    }
    memcpy(g->alike, best, sizeof best);
    g->alike[BEFORE] = g->glyph ? g->glyph - 1 : NONE;
}

static uint32_t *seen_at(const Glyphs *g, uint64_t key)
{
    return g->seen + ((key * PHI) >> (64 - g->seen_bits));
}

static uint64_t last_rows(const Glyphs *g)
{
    return scatter(scatter(scatter(7, g->up[1]), g->up[2]), g->up[3]);
}

/* the row that followed the same rows; how many of those above agree [0 none is known .. 16] */
static void expect(Glyphs *g, int way, uint64_t key)
{
    size_t found = *seen_at(g, key);
    int n = 0, above = g->y - g->shapes[g->glyph].top;
    while (n < 15 && n < above && (size_t)n < found && g->canvas[found - 1 - (size_t)n] == g->canvas[g->at - 1 - (size_t)n])
        n++;
    int is_known = found && (way == BEHIND || n >= above || n == 15);
    g->like[way] = is_known ? g->canvas[found] : 0;
    g->known[way] = is_known ? n + 1 : 0;
}

/* the sum of the first and the last place of a pixel */
static int axis_of(uint64_t row)
{
    int low = 0, high = 63;
    while (!(row >> (63 - low) & 1))
        low++;
    while (!(row >> (63 - high) & 1))
        high--;
    return low + high;
}

static void begin_row(Glyphs *g)
{
    g->row = 0;
    for (int k = 1; k <= UP; k++)
        g->up[k] = row_at(g, g->glyph, g->y - k);
    for (int i = 0; i < GLYPHS_ALIKE; i++) {
        int is_there = g->alike[i] != NONE;
        g->above[i] = is_there ? row_at(g, g->alike[i], g->y - 1) : 0;
        g->like[i] = is_there ? row_at(g, g->alike[i], g->y) : 0;
        g->below[i] = is_there ? row_at(g, g->alike[i], g->y + 1) : 0;
    }
    expect(g, BEGINNING, g->prefix);
    expect(g, BEHIND, last_rows(g));
    g->like[MIRRORED] = row_at(g, g->glyph, g->axis >= 0 ? g->axis - g->y : g->run - 1);
    memset(g->missed, 0, sizeof g->missed);
    uint64_t shape = g->up[1] ? g->up[1] : g->like[BEST];
    g->inked |= g->up[1];
    g->axis_row = shape ? axis_of(shape) : g->axis_row;
    g->axis_all = g->inked ? axis_of(g->inked) : g->axis_all;
}

static void end_row(Glyphs *g)
{
    g->canvas[g->at] = g->row;
    *seen_at(g, g->prefix) = *seen_at(g, last_rows(g)) = (uint32_t)g->at;
    g->prefix = scatter(g->prefix, g->row);
    rank(g, &g->row);
    if (g->axis >= 0 && g->row != row_at(g, g->glyph, g->axis - g->y))
        g->axis = -1;
    if (g->row != g->up[1]) {
        if (g->axis < 0 && g->row && g->row == row_at(g, g->glyph, g->run - 1))
            g->axis = g->y + g->run - 1; /* the rows between were all alike: the axis lies in their middle */
        g->run = g->y;
    }
    g->at++;
}

static void begin_glyph(Glyphs *g)
{
    const GlyphShape *s = g->shapes + g->glyph;
    g->prefix = scatter(scatter(s->top, s->width), s->left);
    g->axis = -1;
    g->run = g->y = s->top;
    g->inked = 0;
    rank(g, NULL);
}

/* 0 off the canvas, 1 not known yet, else 4 + 2 for the pixel mirrored + 8 for the one before it */
static uint32_t mirrored(const Glyphs *g, int axis)
{
    int at = axis - g->x;
    if (at < 0 || at > 63)
        return 0;
    if (at >= g->x)
        return 1;
    return 4 | (uint32_t)(g->row >> (63 - at) & 1) << 1 | (uint32_t)(g->row << 1 >> (63 - at) & 1) << 3;
}

static void look(const Glyphs *g, Sight *s)
{
    s->left = g->x ? (uint32_t)(g->row >> (64 - g->x)) & 255 : 0;
    for (int k = 1; k <= UP; k++)
        s->up[k] = around(g->up[k], g->x);
    s->likely = 0;
    for (int i = 0; i < LIKES; i++) {
        s->like[i] = around(g->like[i], g->x);
        s->likely |= part(s->like[i], 0, 0) << i;
        s->missed[i] = few((uint32_t)g->missed[i], 3);
    }
    for (int i = 0; i < GLYPHS_ALIKE; i++) {
        s->above[i] = around(g->above[i], g->x);
        s->below[i] = around(g->below[i], g->x);
    }
    s->near = part(s->up[1], 1, 1);
    s->mirror_row = mirrored(g, g->axis_row);
    s->mirror_all = mirrored(g, g->axis_all);
}

/* contexts of the glyph by itself */
static uint64_t *put_own(const Glyphs *g, const Sight *s, uint64_t *c)
{
    uint32_t left = s->left, column = 0, columns = 0;
    uint64_t x = (uint64_t)g->x, y = (uint64_t)g->y;
    for (int k = 1; k <= UP; k++)
        column |= part(s->up[k], 0, 0) << k;
    for (int k = 1; k <= 5; k++)
        columns |= part(s->up[k], 1, 1) << 3 * k;
    *c++ = (left & 15) | part(s->up[1], 2, 2) << 4 | part(s->up[2], 1, 1) << 9;
    *c++ = (left & 15) | part(s->up[1], 3, 3) << 4 | part(s->up[2], 2, 2) << 11;
    *c++ = left | (uint64_t)s->up[1] << 8 | (uint64_t)part(s->up[2], 3, 3) << 17 | (uint64_t)part(s->up[3], 2, 2) << 24;
    *c++ = (left & 3) | s->near << 2 | x << 5 | y << 11;
    *c++ = scatter(scatter(g->row, g->up[1]), x);
    *c++ = scatter(scatter(scatter(g->row, g->up[1]), g->up[2]), x);
    *c++ = scatter(scatter(g->row, y), x);
    *c++ = scatter(scatter(scatter(g->prefix, g->row), x), 5);
    *c++ = column << 2 | (left & 3);
    *c++ = columns << 1 | (left & 1);
    return c;
}

static uint32_t nine_of(const Sight *s, int i)
{
    return part(s->above[i], 1, 1) | part(s->like[i], 1, 1) << 3 | part(s->below[i], 1, 1) << 6;
}

/* contexts of other glyphs and of rows seen before */
static uint64_t *put_others(const Glyphs *g, const Sight *s, uint64_t *c)
{
    uint32_t left = s->left, two = left & 3;
    uint64_t best = part(s->above[BEST], 1, 1) | part(s->like[BEST], 2, 2) << 3 | part(s->below[BEST], 1, 1) << 8;
    *c++ = nine_of(s, BEFORE) | two << 9 | s->near << 11;
    *c++ = best | (left & 7) << 11 | part(s->up[1], 1, 2) << 14 | s->missed[BEST] << 18;
    *c++ = s->likely | (uint64_t)s->missed[BEST] << 7 | (uint64_t)s->missed[BEGINNING] << 9 |
           (uint64_t)s->missed[BEHIND] << 11 | (uint64_t)s->missed[WHOLE] << 13;
    *c++ = part(s->like[BEGINNING], 1, 1) | s->missed[BEGINNING] << 3 | few((uint32_t)g->known[BEGINNING], 7) << 5 |
           two << 8 | part(s->like[BEST], 0, 0) << 10 | s->missed[BEST] << 11;
    *c++ = part(s->like[BEHIND], 1, 1) | s->missed[BEHIND] << 3 | few((uint32_t)g->known[BEHIND], 7) << 5 | two << 8 |
           s->near << 10;
    return c;
}

/* contexts of symmetry and of the place in the glyph */
static void put_places(const Glyphs *g, const Sight *s, uint64_t *c)
{
    const GlyphShape *shape = g->shapes + g->glyph;
    uint32_t left = s->left, two = left & 3, x = (uint32_t)(g->x - shape->left), y = (uint32_t)(g->y - shape->top);
    uint64_t near = s->near, is_axis = g->axis >= 0, missed = s->missed[MIRRORED];
    *c++ = part(s->like[MIRRORED], 1, 1) | missed << 3 | is_axis << 5 | two << 6 | near << 8 |
           few((uint32_t)(g->y - g->run), 7) << 11;
    *c++ = s->mirror_row | part(s->like[MIRRORED], 1, 1) << 4 | two << 7 | near << 9;
    *c++ = s->mirror_all | part(s->like[MIRRORED], 0, 0) << 4 | part(s->like[BEFORE], 0, 0) << 5 | two << 7 | near << 9 |
           part(s->like[BEST], 0, 0) << 12;
    *c++ = part(s->like[BEFORE], 1, 1) | part(s->like[MIRRORED], 2, 2) << 3 | (left & 7) << 8 |
           part(s->up[1], 2, 2) << 11 | few((uint32_t)missed, 2) << 16 | is_axis << 18;
    *c++ = x | y << 6 | (uint64_t)s->likely << 22;
    *c++ = (uint32_t)g->x | (uint64_t)g->y << 6 | (uint64_t)(s->likely >> BEFORE & 1) << 23 |
           (uint64_t)(s->likely >> MIRRORED) << 24 | (uint64_t)(s->mirror_row & 7) << 25;
    *c++ = (shape->width - x) | (shape->height - y) << 7 | (uint64_t)two << 23 | near << 25 |
           (uint64_t)(s->likely & 1) << 28;
}

/* which weights and final estimations are used */
static void pick_rows(const Glyphs *g, const Sight *s, uint32_t *pick, uint32_t *final)
{
    uint32_t likely = s->likely, y = (uint32_t)(g->y - g->shapes[g->glyph].top), one = s->left & 1;
    uint32_t mirror = likely >> MIRRORED & 1, beginning = likely >> BEGINNING & 1;
    uint32_t off = g->alike[BEST] == NONE ? 7 : few(g->lately[g->alike[BEST] % WINDOW] >> 4, 7);
    pick[0] = s->missed[BEST] | s->missed[BEGINNING] << 2 | few((uint32_t)g->known[BEGINNING], 3) << 4 |
              (likely & 1) << 6 | beginning << 7 | (uint32_t)(s->missed[SECOND] > 0) << 8;
    pick[1] = (uint32_t)g->x | mirror << 6 | (uint32_t)(s->missed[MIRRORED] > 0) << 7 | (uint32_t)(g->axis >= 0) << 8;
    pick[2] = few(y, 63) | off << 6;
    pick[3] = one | s->near << 1 | (s->mirror_row & 6) << 3 | mirror << 6 | (likely & 1) << 7;
    final[0] = (s->left & 15) | part(s->up[1], 2, 2) << 4 | part(s->up[2], 1, 1) << 9;
    final[1] = (likely & 3) | beginning << 2 | (likely >> BEHIND & 1) << 3 | mirror << 4 | (likely >> BEFORE & 1) << 5 |
               (s->mirror_row & 6) << 5 | (uint32_t)(s->missed[BEST] > 0) << 8 | one << 9;
}

/* a slot: probability (16 bits), zeros and ones seen lately (4 bits each), check (8 bits) */
static void look_up(Glyphs *g, const uint64_t *contexts, int16_t *input)
{
    uint32_t checks[CONTEXTS];
    for (int i = 0; i < CONTEXTS; i++) {
        uint64_t hash = (contexts[i] + 1 + (uint64_t)i) * SPREAD;
        hash = (hash ^ hash >> 31) * PHI;
        checks[i] = (uint32_t)hash & 255;
        g->slot[i] = g->table[i] + (size_t)(hash >> (64 - g->table_bits));
        FETCH(g->slot[i]); /* they come from memory while the next ones are found */
    }
    for (int i = 0; i < CONTEXTS; i++) {
        uint32_t *slot = g->slot[i], check = checks[i];
        if (!*slot || (*slot & 255) != check)
            *slot = 32768u << 16 | check;
        uint32_t state = *slot >> 8 & 255;
        input[2 * i] = state ? stretch_table[g->map[i][state] >> 20] : 0;
        input[2 * i + 1] = state ? stretch_table[*slot >> 20] : 0;
    }
    input[2 * CONTEXTS] = 256;
}

static void learn_slot(uint32_t *slot, uint32_t *map, int bit)
{
    uint32_t state = *slot >> 8 & 255, zeros = state >> 4, many = state & 15;
    int32_t p = (int32_t)(*slot >> 16);
    p += (int32_t)((int64_t)((bit ? 65535 : 0) - p) * reciprocal[few(zeros + many, 28)] >> 16);
    adapt(map + state, bit, 60);
    uint32_t *same = bit ? &many : &zeros, *other = bit ? &zeros : &many;
    *same += *same < 15;
    if (*other > 2)
        *other = (*other + 1) / 2;
    *slot = (uint32_t)p << 16 | zeros << 12 | many << 8 | (*slot & 255);
}

static int code_pixel(Glyphs *g, int bit)
{
    Sight s;
    uint64_t contexts[CONTEXTS];
    uint32_t pick[SETS], final[2];
    int16_t input[INPUTS] = {0}, mixed[8] = {0};
    look(g, &s);
    put_places(g, &s, put_others(g, &s, put_own(g, &s, contexts)));
    pick_rows(g, &s, pick, final);
    look_up(g, contexts, input);
    for (int set = 0; set < SETS; set++)
        mixed[set] = (int16_t)weighted(input, g->weight[set][pick[set]], INPUTS);
    int last = weighted(mixed, g->last_weight[pick[3]], 8), at = (last + 2048) >> 7, rest = (last + 2048) & 127;
    uint16_t *f0 = g->final[0][final[0]] + at, *f1 = g->final[1][final[1]] + at;
    int refined = (f0[0] + f1[0]) * (128 - rest) + (f0[1] + f1[1]) * rest;
    bit = coder_code(&g->coder, bit, between(16, (2 * squash(last) + (refined >> 7) + 2) >> 2, 65520));
    approach(f0 + (rest >= 64), bit, 5);
    approach(f1 + (rest >= 64), bit, 5);
    for (int set = 0; set < SETS; set++)
        train(input, g->weight[set][pick[set]], ((bit << 16) - squash(mixed[set])) >> 1, INPUTS);
    train(mixed, g->last_weight[pick[3]], ((bit << 16) - squash(last)) >> 3, 8);
    for (int i = 0; i < CONTEXTS; i++)
        learn_slot(g->slot[i], g->map[i], bit);
    return bit;
}

/* codes `rows`, or fills them when the coder reads */
static void code_row(Glyphs *g, uint64_t *row)
{
    const GlyphShape *s = g->shapes + g->glyph;
    uint64_t wanted = *row >> s->left;
    begin_row(g);
    for (g->x = s->left; g->x < s->left + s->width; g->x++) {
        int shift = 63 - g->x, bit = code_pixel(g, (int)(wanted >> shift & 1));
        g->row |= (uint64_t)bit << shift;
        for (int i = 0; i < LIKES; i++)
            g->missed[i] += bit != (int)(g->like[i] >> shift & 1);
    }
    end_row(g);
    *row = g->row << s->left;
}

static void code_all(Glyphs *g, uint64_t *rows)
{
    for (g->glyph = 0; g->glyph < g->count; g->glyph++) {
        const GlyphShape *s = g->shapes + g->glyph;
        if (!s->height)
            continue;
        begin_glyph(g);
        for (; g->y < s->top + s->height; g->y++)
            code_row(g, rows + g->at);
    }
}

int glyphs_encode(const GlyphShape *shapes, size_t count, uint64_t *rows, uint8_t *out, size_t room, size_t *out_size)
{
    Glyphs *g = glyphs_make(shapes, count);
    if (!g)
        return KERNEL_NO_MEMORY;
    coder_write_to(&g->coder, out, room);
    code_all(g, rows);
    *out_size = coder_finish(&g->coder);
    glyphs_free(g);
    return KERNEL_OK;
}

int glyphs_decode(const uint8_t *data, size_t size, const GlyphShape *shapes, size_t count, uint64_t *rows)
{
    Glyphs *g = glyphs_make(shapes, count);
    if (!g)
        return KERNEL_NO_MEMORY;
    coder_read_from(&g->coder, data, size);
    code_all(g, rows);
    glyphs_free(g);
    return KERNEL_OK;
}
