/* The network of network.h. After Mahoney (2013), "Data Compression Explained", sections 4.3 and 4.4; contexts keep
 * probabilities and counts instead of bit histories, for what pictures hold is steadier than text. */
#include "network.h"

#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define FETCH(address) __builtin_prefetch(address)
#else
#define FETCH(address) (void)0
#endif

#define HALF 0x80000000u /* lines keep probabilities off one half, so that an empty one is all zeros */
#define COUNT 1023u
#define FIRST_RATE 400
#define LIMIT 255 /* observations after which a probability forgets at a steady rate */

Network *network_make(int contexts, int line_bits, int last_rate)
{
    Network *net = calloc(1, sizeof *net);
    uint32_t *lines = calloc((size_t)16 << line_bits, sizeof *lines);
    if (!net || !lines) {
        free(net);
        free(lines);
        return NULL;
    }
    net->contexts = contexts;
    net->line_bits = line_bits;
    net->lines = lines;
    net->last_rate = (uint32_t)last_rate << 16;
    net->rate = FIRST_RATE << 16;
    for (int row = 0; row < NETWORK_ROWS; row++) {
        for (int set = 0; set < NETWORK_SETS; set++)
            for (int i = 0; i < 2 * contexts; i++)
                net->weight[set][row][i] = (int16_t)(i & 1 ? 12000 / contexts : 90000 / contexts);
        for (int set = 0; set < NETWORK_SETS; set++)
            net->last_weight[row][set] = 32767 / NETWORK_SETS;
    }
    for (int row = 0; row < NETWORK_FINALS; row++)
        for (int k = 0; k < 33; k++)
            net->final[row][k] = (uint16_t)squash((k - 16) * 128);
    return net;
}

void network_free(Network *net)
{
    if (net)
        free(net->lines);
    free(net);
}

/* the line of a hash: of two neighbors the one with the right check, else the one that knows less, emptied */
static uint32_t *find_line(Network *net, uint64_t hash)
{
    size_t at = (size_t)(hash >> (64 - net->line_bits));
    uint32_t check = (uint32_t)hash | 1, *first = net->lines + at * 16, *second = net->lines + (at ^ 1) * 16;
    if (first[0] == check)
        return first;
    if (second[0] == check)
        return second;
    uint32_t *loser = (first[1] & COUNT) <= (second[1] & COUNT) ? first : second;
    memset(loser, 0, 64);
    loser[0] = check;
    return loser;
}

void network_look_up(Network *net, const uint64_t *hashes)
{
    uint64_t spread[NETWORK_CONTEXTS];
    for (int i = 0; i < net->contexts; i++) {
        spread[i] = (hashes[i] + (uint64_t)i) * SPREAD;
        spread[i] ^= spread[i] >> 31;
        FETCH(net->lines + (size_t)(spread[i] >> (64 - net->line_bits)) * 16);
    }
    for (int i = 0; i < net->contexts; i++)
        net->line[i] = find_line(net, spread[i]);
}

static void put_inputs(const Network *net, int node, int16_t *input)
{
    for (int i = 0; i < net->contexts; i++) {
        uint32_t slot = net->line[i][node] ^ HALF, count = slot & COUNT;
        int p = (int)(slot >> 20);
        input[2 * i] = count ? stretch_table[p] : 0;
        input[2 * i + 1] = (int16_t)((p - 2048) * (int)(64 * count / (2 * count + 3)) >> 5);
    }
    input[2 * net->contexts] = 256;
}

static int error_of(const Network *net, int bit, int mixed)
{
    return (int)(((int64_t)((bit << 16) - squash(mixed)) * (net->rate >> 16)) >> 10);
}

static void learn(Network *net, const Decision *d, int bit, const int16_t *input, const int16_t *mixed, int last)
{
    int inputs = (2 * net->contexts + 8) & ~7;
    for (int set = 0; set < NETWORK_SETS; set++)
        train(input, net->weight[set][d->row[set]], error_of(net, bit, mixed[set]), inputs);
    train(mixed, net->last_weight[d->row[0]], ((bit << 16) - squash(last)) >> 4, 8);
    net->rate -= (net->rate - net->last_rate) >> 14;
    for (int i = 0; i < net->contexts; i++) {
        uint32_t slot = net->line[i][d->node] ^ HALF;
        adapt(&slot, bit, LIMIT);
        net->line[i][d->node] = slot ^ HALF;
    }
}

int network_code(Network *net, const Decision *d, int bit)
{
    int16_t input[NETWORK_INPUTS] = {0}, mixed[8] = {0};
    int inputs = (2 * net->contexts + 8) & ~7;
    put_inputs(net, d->node, input);
    for (int set = 0; set < NETWORK_SETS; set++)
        mixed[set] = (int16_t)weighted(input, net->weight[set][d->row[set]], inputs);
    int last = weighted(mixed, net->last_weight[d->row[0]], 8);
    int at = (last + 2048) >> 7, part = (last + 2048) & 127;
    uint16_t *final = net->final[d->final] + at;
    int refined = (final[0] * (128 - part) + final[1] * part) >> 7;
    bit = coder_code(&net->coder, bit, between(16, (squash(last) + refined + 1) >> 1, 65520));
    approach(final + (part >= 64), bit, 6);
    learn(net, d, bit, input, mixed, last);
    return bit;
}
