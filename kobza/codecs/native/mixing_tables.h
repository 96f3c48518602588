/* Tables of the context mixing, made once: logistic function, its inverse, bit histories. Only for mixing.c. */
#ifndef KOBZA_MIXING_TABLES_H
#define KOBZA_MIXING_TABLES_H

#include <stdint.h>

/* logistic function 65536 / (1 + e^-x) at x = -8, -7.5 .. 8 */
static const int32_t LOGISTIC[33] = {22,    36,    60,    98,    162,   267,   439,   720,   1179,  1921,  3108,
                                     4971,  7812,  11955, 17625, 24743, 32768, 40793, 47911, 53581, 57724, 60565,
                                     62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514};
/* most observations of the rarer bit remembered beside n of the other: limits the histories to 239 */
static const uint8_t MOST_BESIDE[25] = {24, 24, 14, 9, 7, 6, 5, 4, 3, 3, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static uint16_t squash_table[4096];
static int16_t stretch_table[4096];
static int32_t reciprocal[1024]; /* 65536 / (n + 1.5) */
static uint8_t next_state[256][2];
static uint32_t first_map[256]; /* probability of a 1 after a history, 22 bits, and a count, 10 bits */

static int squash(int x)
{
    return squash_table[(x < -2047 ? -2047 : x > 2047 ? 2047 : x) + 2048];
}

static void prepare_logistic(void)
{
    for (int i = 0; i < 4096; i++) {
        int at = i >> 7, part = i & 127;
        squash_table[i] = (uint16_t)((LOGISTIC[at] * (128 - part) + LOGISTIC[at + 1] * part + 64) >> 7);
    }
    int p = 0;
    for (int x = -2047; x <= 2047; x++)
        for (; p <= squash_table[x + 2048] >> 4; p++)
            stretch_table[p] = (int16_t)x;
    for (; p < 4096; p++)
        stretch_table[p] = 2047;
    for (int n = 0; n < 1024; n++)
        reciprocal[n] = 65536 * 2 / (2 * n + 3);
}

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
    prepare_logistic();
    prepare_states();
}

#endif
