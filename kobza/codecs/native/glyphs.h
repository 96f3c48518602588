/* Glyphs of a bitmap font, pixel after pixel. Twin: plain_glyphs.py, which explains the contexts. */
#ifndef KOBZA_GLYPHS_H
#define KOBZA_GLYPHS_H

#include <stddef.h>
#include <stdint.h>

/* pixels; left + width is at most 64, without width there is no height */
typedef struct {
    uint16_t width, height, left, top;
} GlyphShape;

/* `rows`: of all glyphs, the leftmost pixel is the highest bit, other bits are made 0; the encoder stops with *out_size = room,
 * the decoder wants zeros */
int glyphs_encode(const GlyphShape *shapes, size_t count, uint64_t *rows, uint8_t *out, size_t room,
                  size_t *out_size);
int glyphs_decode(const uint8_t *data, size_t size, const GlyphShape *shapes, size_t count, uint64_t *rows);

#endif
