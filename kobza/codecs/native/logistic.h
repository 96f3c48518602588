/* Parts of every codec that mixes bit predictions: logistic tables, adaptive probabilities, weights. Integers only.
 * Twin: plain_logistic.py. */
#ifndef KOBZA_LOGISTIC_H
#define KOBZA_LOGISTIC_H

#include <stddef.h>
#include <stdint.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

extern uint16_t squash_table[4096];
extern int16_t stretch_table[4096];
extern int32_t reciprocal[1024]; /* 65536 / (n + 1.5) */

void logistic_prepare(void);

static inline int squash(int x)
{
    return squash_table[(x < -2047 ? -2047 : x > 2047 ? 2047 : x) + 2048];
}

static inline int log2_above(size_t size)
{
    int bits = 0;
    while ((size_t)1 << bits < size)
        bits++;
    return bits;
}

static inline int between(int low, int value, int high)
{
    return value < low ? low : value > high ? high : value;
}

/* probability (22 bits) moves towards the bit by 1 / (n + 1.5), its count n (10 bits) grows to the limit */
static inline void adapt(uint32_t *map, int bit, uint32_t limit)
{
    uint32_t count = *map & 1023, p = *map >> 10;
    int32_t off = ((bit << 22) - (int32_t)p) >> 3;
    p += (uint32_t)(((int64_t)off * reciprocal[count]) >> 13);
    *map = p << 10 | (count < limit ? count + 1 : limit);
}

/* weight += input * error / 65536, rounded and saturated; n is a multiple of 8 */
static inline void train(const int16_t *input, int16_t *weight, int error, int n)
{
#if defined(__SSE2__)
    __m128i wide = _mm_set1_epi16((int16_t)error), one = _mm_set1_epi16(1);
    for (int i = 0; i < n; i += 8) {
        __m128i in = _mm_loadu_si128((const __m128i *)(input + i)), w = _mm_loadu_si128((__m128i *)(weight + i));
        __m128i step = _mm_mulhi_epi16(_mm_add_epi16(in, in), wide);
        w = _mm_adds_epi16(w, _mm_srai_epi16(_mm_add_epi16(step, one), 1));
        _mm_storeu_si128((__m128i *)(weight + i), w);
    }
#else
    for (int i = 0; i < n; i++)
        weight[i] = (int16_t)between(-32768, weight[i] + (((2 * input[i] * error >> 16) + 1) >> 1), 32767);
#endif
}

/* products are summed in pairs, each shifted, so that no sum leaves 32 bits; n is a multiple of 8 */
static inline int weighted(const int16_t *input, const int16_t *weight, int n)
{
#if defined(__SSE2__)
    __m128i sum = _mm_setzero_si128();
    for (int i = 0; i < n; i += 8) {
        __m128i a = _mm_loadu_si128((const __m128i *)(input + i)), b = _mm_loadu_si128((const __m128i *)(weight + i));
        sum = _mm_add_epi32(sum, _mm_srai_epi32(_mm_madd_epi16(a, b), 8));
    }
    sum = _mm_add_epi32(sum, _mm_srli_si128(sum, 8));
    sum = _mm_add_epi32(sum, _mm_srli_si128(sum, 4));
    int32_t whole = _mm_cvtsi128_si32(sum);
#else
    int32_t whole = 0;
    for (int i = 0; i < n; i += 2)
        whole += (input[i] * weight[i] + input[i + 1] * weight[i + 1]) >> 8;
#endif
    return between(-2047, whole >> 7, 2047);
}

static inline void approach(uint16_t *probability, int bit, int rate)
{
    *probability = (uint16_t)(*probability + (((bit ? 65535 : 0) - *probability) >> rate));
}

#endif
