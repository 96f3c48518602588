/* Binary arithmetic code: an interval [low, high] of 32 bits is split in proportion to the probability of a 1 (its lower
 * part), equal leading bytes move out, zeros follow the last byte. */
#ifndef KOBZA_BITCODER_H
#define KOBZA_BITCODER_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *in;
    uint8_t *out;
    size_t size, at; /* of what is read or written */
    int reads;
    uint32_t low, high, code;
} BitCoder;

static inline void coder_write_to(BitCoder *c, uint8_t *out, size_t room)
{
    *c = (BitCoder){.out = out, .size = room, .high = UINT32_MAX};
}

static inline void coder_read_from(BitCoder *c, const uint8_t *in, size_t size)
{
    *c = (BitCoder){.in = in, .reads = 1, .size = size, .high = UINT32_MAX};
    for (; c->at < 4; c->at++)
        c->code = c->code << 8 | (c->at < size ? in[c->at] : 0);
}

/* codes `bit`, or reads one when the coder reads; returns it; `probability` of a 1 in 1/65536 */
static inline int coder_code(BitCoder *c, int bit, int probability)
{
    uint32_t middle = c->low + (uint32_t)((uint64_t)(c->high - c->low) * (uint32_t)probability >> 16);
    if (c->reads)
        bit = c->code <= middle;
    if (bit)
        c->high = middle;
    else
        c->low = middle + 1;
    for (; !((c->low ^ c->high) >> 24); c->low <<= 8, c->high = c->high << 8 | 255, c->at++) {
        if (c->reads)
            c->code = c->code << 8 | (c->at < c->size ? c->in[c->at] : 0);
        else if (c->at < c->size)
            c->out[c->at] = (uint8_t)(c->high >> 24);
    }
    return bit;
}

/* bytes written; `room` when it did not suffice */
static inline size_t coder_finish(BitCoder *c)
{
    if (c->at >= c->size)
        return c->size;
    c->out[c->at++] = (uint8_t)((c->low >> 24) + 1); /* any number from low to high, zeros behind it */
    return c->at;
}

#endif
