/* Bit histories of the context mixing, made once. Only for mixing.c. */
#ifndef KOBZA_MIXING_TABLES_H
#define KOBZA_MIXING_TABLES_H

#include "logistic.h"

/* most observations of the rarer bit remembered beside n of the other: limits the histories to 239 */
static const uint8_t MOST_BESIDE[25] = {24, 24, 14, 9, 7, 6, 5, 4, 3, 3, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static uint8_t next_state[256][2];
static uint32_t first_map[256]; /* probability of a 1 after a history, 22 bits, and a count, 10 bits */

static int is_history(int zeros, int ones)
{
    return zeros < 25 && ones < 25 && zeros <= MOST_BESIDE[ones] && ones <= MOST_BESIDE[zeros];
}

/* the history after one more bit: the opposite count shrinks when it is large, for what is recent weighs more */
static void extend(int *same, int *other)
{
    (*same)++;
    if (*other > 2)
        *other = *other > 7 ? 5 : *other > 4 ? 4 : *other > 3 ? 3 : 2;
    while (!is_history(*same, *other)) {
        if (*other > 1)
            (*other)--;
        else
            (*same)--;
    }
}

static void prepare_states(void)
{
    static uint8_t number[25][25][2];
    int zeros_of[256], ones_of[256], count = 0;
    for (int total = 0; total < 49; total++)
        for (int ones = 0; ones <= total; ones++)
            for (int last = 0; last < 2; last++) {
                int zeros = total - ones;
                if (!is_history(zeros, ones) || (last && !(zeros && ones)))
                    continue;
                zeros_of[count] = zeros;
                ones_of[count] = ones;
                number[zeros][ones][last] = (uint8_t)count;
                if (!zeros || !ones)
                    number[zeros][ones][1] = (uint8_t)count;
                count++;
            }
    for (int s = 0; s < count; s++) {
        int zeros = zeros_of[s], ones = ones_of[s];
        first_map[s] = (uint32_t)((ones * 2 + 1) * (int64_t)4194303 / (zeros * 2 + ones * 2 + 2)) << 10;
        extend(&zeros, &ones);
        next_state[s][0] = number[zeros][ones][0];
        zeros = zeros_of[s];
        ones = ones_of[s];
        extend(&ones, &zeros);
        next_state[s][1] = number[zeros][ones][1];
    }
}

void mixing_prepare(void)
{
    logistic_prepare();
    prepare_states();
}

#endif
