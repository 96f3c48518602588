/* What the two halves of the picture codec share: prediction.c and picture.c. Twin: plain_picture.py. */
#ifndef KOBZA_PICTURE_H
#define KOBZA_PICTURE_H

#include "kernels.h"
#include "network.h"

#define CHANNELS 4
#define PAD 4 /* pixels that rows reach beyond both ends */
#define ROWS 4
#define PREDICTIONS 10
#define TAPS 20
#define FILTERS 2
#define LEVELS 4 /* neighborhoods that remember which color followed */
#define CANDIDATES 3
#define CONTEXTS 20
#define EXACT 14
#define LONG_WEIGHT (1 << 20)

typedef struct {
    int32_t weight[TAPS], delta[TAPS];
    int64_t energy;
    int sum, base;
} Filter;

typedef struct {
    uint64_t color;
    uint32_t check, count;
} Memory;

typedef struct {
    Network *net;
    int width, channels, depth, top, mode;
    uint16_t *row[ROWS]; /* the present one, and those above */
    int32_t *miss[2];    /* sample - centre */
    uint16_t *cost[2];   /* distance of each prediction from the sample */
    uint64_t *color[ROWS];
    uint8_t *hits[2]; /* which candidate a pixel was; CANDIDATES = none */
    Filter filter[CHANNELS][FILTERS];
    Memory *memory[LEVELS];
    int memory_bits, run;
    void *arena;
    /* of the present pixel and sample */
    uint64_t exact[EXACT], candidate[CANDIDATES];
    int candidates, level, certainty;
    int prediction[PREDICTIONS], centre, energy;
} Picture;

static inline int distance(int a, int b)
{
    return a < b ? b - a : a - b;
}

/* signed steps, fine near zero, two to the octave further out */
static inline int step_of(int v)
{
    int a = v < 0 ? -v : v, bits = 0;
    if (a > 4) {
        while ((a - 1) >> (bits + 1))
            bits++;
        a = 5 + (bits - 2) * 2 + ((a - 1) >> (bits - 1) & 1);
    }
    return v < 0 ? -a : a;
}

static inline uint64_t packed(int a, int b, int c, int d)
{
    return (uint64_t)(uint16_t)a | (uint64_t)(uint16_t)b << 16 | (uint64_t)(uint16_t)c << 32 |
           (uint64_t)(uint16_t)d << 48;
}

/* channels by falling use to the others: green first */
static inline int channel_at(const Picture *m, int place)
{
    return m->channels >= 3 && place < 2 ? 1 - place : place;
}

/* sets the predictions of a sample and the centre between them */
void picture_predict(Picture *m, int x, int place);
/* lets predictions and filters learn from a sample just coded */
void picture_settle(Picture *m, int x, int place);

#endif
