/* Tables of logistic.h, made once. */
#include "logistic.h"

/* logistic function 65536 / (1 + e^-x) at x = -8, -7.5 .. 8 */
static const int32_t LOGISTIC[33] = {22,    36,    60,    98,    162,   267,   439,   720,   1179,  1921,  3108,
                                     4971,  7812,  11955, 17625, 24743, 32768, 40793, 47911, 53581, 57724, 60565,
                                     62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514};
uint16_t squash_table[4096];
int16_t stretch_table[4096];
int32_t reciprocal[1024];

void logistic_prepare(void)
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
