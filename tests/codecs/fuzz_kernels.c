/* Random input and random damage through every C kernel, to be run under the sanitizers: fuzz_kernels [rounds] [seed].
 * Ends with 0 when every round trip held and nothing touched memory it should not. */
#include "glyphs.h"
#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t state = 1;

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % below;
}

/* a block of exactly n bytes, so that one byte too many is seen */
static uint8_t *block(size_t n)
{
    uint8_t *made = malloc(n ? n : 1);
    if (!made)
        exit(9);
    return made;
}

static void fill(uint8_t *data, size_t n)
{
    uint32_t kind = draw(3);
    for (size_t i = 0; i < n; i++)
        data[i] = (uint8_t)(kind == 0 ? draw(256) : kind == 1 || i < 10 || !draw(4) ? draw(7) : data[i - 1 - draw(9)]);
}

static void try_ulz(const uint8_t *data, size_t n)
{
    uint8_t *room = block(ulz_bound(n)), *back = block(n);
    size_t size;
    if (ulz_encode(data, n, 1 + (int)draw(9), room, &size) || size > ulz_bound(n))
        exit(1);
    uint8_t *stream = block(size);
    memcpy(stream, room, size);
    if (ulz_decode(stream, size, back, n) || memcmp(back, data, n))
        exit(2);
    for (int i = 0; i < 4 && size; i++) {
        stream[draw((uint32_t)size)] = (uint8_t)draw(256);
        ulz_decode(stream, size, back, n);
        ulz_decode(stream, draw((uint32_t)size), back, n);
    }
    free(room);
    free(back);
    free(stream);
}

static void try_merges(const uint8_t *data, size_t n)
{
    uint8_t pairs[3 * 255], *merged = block(n + 32), *again = block(n + 32), *back = block(n);
    size_t size, size_again;
    int count;
    if (bpe_learn(data, n, (int)draw(256), 2, pairs, &count, merged, &size))
        exit(3);
    if (bpe_expand(merged, size, pairs, count, back, n) || memcmp(back, data, n))
        exit(4);
    if (bpe_apply(data, n, pairs, count, again, &size_again) || size != size_again || memcmp(merged, again, size))
        exit(5);
    for (int i = 0; i < 3 && count; i++) {
        pairs[draw(3 * (uint32_t)count)] = (uint8_t)draw(256);
        bpe_expand(merged, size, pairs, count, back, n);
    }
    free(merged);
    free(again);
    free(back);
}

static void try_mixing(const uint8_t *data, size_t n)
{
    size_t room = 2 * n + 16, size;
    uint8_t *out = block(room), *back = block(n);
    if (mixing_encode(data, n, out, room, &size))
        exit(6);
    uint8_t *payload = block(size);
    memcpy(payload, out, size);
    if (mixing_decode(payload, size, back, n) || memcmp(back, data, n))
        exit(7);
    payload[draw((uint32_t)size)] = (uint8_t)draw(256);
    mixing_decode(payload, draw((uint32_t)size), back, n);
    free(out);
    free(back);
    free(payload);
}

/* texts in turns, as far as they go and one byte further */
static void try_together(const uint8_t *data, size_t n)
{
    int streams = 1 + (int)draw(4);
    size_t size = 1 + draw(60);
    Together *texts = together_make(size, streams);
    if (!texts)
        exit(8);
    for (size_t i = 0; i < n; i++) {
        together_turn(texts, (int)draw((uint32_t)streams + 1));
        for (int k = 7; k >= 0; k--) {
            together_predict(texts);
            together_update(texts, data[i] >> k & 1);
        }
    }
    together_free(texts);
}

/* any bytes as a picture of any shape, and a damaged payload of it */
static void try_picture(const uint8_t *data, size_t n)
{
    PictureShape shape = {1 + (int)draw(12), 0, 1 + (int)draw(4), draw(2) ? 8 : 16, (int)draw(3)};
    size_t stride = (size_t)shape.width * (size_t)shape.channels * (shape.depth > 8 ? 2 : 1);
    shape.height = (int)(n / stride);
    n = stride * (size_t)shape.height;
    if (!n)
        return;
    size_t room = 8 * n + 4096, size;
    uint8_t *out = block(room), *back = block(n);
    if (picture_encode(data, &shape, out, room, &size))
        exit(11);
    uint8_t *payload = block(size);
    memcpy(payload, out, size);
    if (picture_decode(payload, size, &shape, back) || memcmp(back, data, n))
        exit(10);
    payload[draw((uint32_t)size)] = (uint8_t)draw(256);
    picture_decode(payload, draw((uint32_t)size), &shape, back);
    free(out);
    free(back);
    free(payload);
}

/* any bytes as rows of glyphs of many shapes, and a damaged payload of them */
static void try_glyphs(const uint8_t *data, size_t n)
{
    GlyphShape shapes[40];
    size_t count = draw(40), rows = 0, size;
    for (size_t i = 0; i < count; i++) {
        uint16_t width = (uint16_t)draw(65), left = (uint16_t)draw(65u - width);
        shapes[i] = (GlyphShape){width, (uint16_t)(width ? draw(12) : 0), left, (uint16_t)draw(5)};
        rows += shapes[i].height;
    }
    if (8 * rows > n)
        return;
    uint64_t *wanted = (uint64_t *)(void *)block(8 * rows), *back = calloc(rows + 1, 8);
    uint8_t *out = block(96 * rows + 16);
    memcpy(wanted, data, 8 * rows);
    if (!back || glyphs_encode(shapes, count, wanted, out, 96 * rows + 16, &size))
        exit(12);
    uint8_t *payload = block(size);
    memcpy(payload, out, size);
    if (glyphs_decode(payload, size, shapes, count, back) || memcmp(back, wanted, 8 * rows))
        exit(13);
    payload[draw((uint32_t)size)] = (uint8_t)draw(256);
    glyphs_decode(payload, draw((uint32_t)size), shapes, count, back);
    free(wanted);
    free(back);
    free(out);
    free(payload);
}

int main(int count, char **words)
{
    long rounds = count > 1 ? atol(words[1]) : 1000;
    state = count > 2 ? (uint32_t)atol(words[2]) | 1 : 1;
    crc32c_prepare();
    mixing_prepare(); /* and what it shares with pictures */
    for (long i = 0; i < rounds; i++) {
        size_t n = draw(700);
        uint8_t *data = block(n);
        fill(data, n);
        crc32c_update(0, data, n);
        try_ulz(data, n);
        try_merges(data, n);
        if (i % 20 == 0)
            try_mixing(data, n), try_together(data, n);
        if (i % 10 == 0)
            try_picture(data, n), try_glyphs(data, n);
        free(data);
    }
    printf("%ld rounds clean\n", rounds);
    return 0;
}
