/* A network of hashed contexts that predicts one bit after the other and codes it: what pictures and glyphs share.
 * Twin: plain_network.py, which explains the parts. */
#ifndef KOBZA_NETWORK_H
#define KOBZA_NETWORK_H

#include "bitcoder.h"
#include "logistic.h"

#define NETWORK_CONTEXTS 20 /* at most */
#define NETWORK_INPUTS 48   /* 2 per context, a constant; padded to a multiple of 8 */
#define NETWORK_SETS 3      /* sets of weights, each chosen by another row */
#define NETWORK_ROWS 256
#define NETWORK_FINALS 2048
#define PHI 0x9E3779B97F4A7C15u
#define SPREAD 0xBF58476D1CE4E5B9u

typedef struct {
    int contexts, line_bits;
    uint32_t *lines, *line[NETWORK_CONTEXTS]; /* 16 numbers: check, then 15 decisions */
    int16_t weight[NETWORK_SETS][NETWORK_ROWS][NETWORK_INPUTS], last_weight[NETWORK_ROWS][8];
    uint16_t final[NETWORK_FINALS][33];
    uint32_t rate, last_rate;
    BitCoder coder;
} Network;

/* what one decision is about: its place in the lines, a row per set of weights, a row of the final estimation */
typedef struct {
    int node, row[NETWORK_SETS], final;
} Decision;

/* `last_rate`: how fast weights still learn in the end; they begin at 400 */
Network *network_make(int contexts, int line_bits, int last_rate);
void network_free(Network *net);
void network_look_up(Network *net, const uint64_t *hashes);
/* codes `bit`, or reads one when the coder reads; returns it */
int network_code(Network *net, const Decision *decision, int bit);

static inline uint64_t scatter(uint64_t hash, uint64_t value)
{
    hash = (hash + value + 1) * PHI;
    return hash ^ hash >> 32;
}

#endif
