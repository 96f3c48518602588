/* Byte-pair merges into byte values that do not occur: learn, apply, undo. Twin: plain_bpe.py. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* counts[left << 8 | right] = how often the two stand side by side; kept exact through every merge */
typedef struct {
    int32_t pairs[65536];
    size_t bytes[256];
} Counts;

static void count_all(const uint8_t *data, size_t size, Counts *counts)
{
    memset(counts, 0, sizeof *counts);
    for (size_t i = 0; i < size; i++)
        counts->bytes[data[i]]++;
    for (size_t i = 1; i < size; i++)
        counts->pairs[data[i - 1] << 8 | data[i]]++;
}

/* log2 in 1/256, straight lines between the powers of two; of 0 as of 1 */
static int32_t rough_log2(uint64_t n)
{
    int32_t whole = 0;
    while (n >> whole > 1)
        whole++;
    return n ? whole * 256 + (int32_t)((n << 8) >> whole) - 256 : 0;
}

/* The pair whose bytes stand together most beyond chance: the largest count * log2(count * size / (left * right)),
 * of equals the one with the smallest number; -1 when no pair occurs `least` times and gains. */
static int best_pair(const Counts *counts, size_t size, uint32_t least)
{
    int32_t log_size = rough_log2(size), log_bytes[256];
    int used[256], n = 0, best = -1;
    int64_t most = 0;
    for (int byte = 0; byte < 256; byte++)
        if (counts->bytes[byte]) {
            log_bytes[byte] = rough_log2(counts->bytes[byte]);
            used[n++] = byte;
        }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < n; k++) {
            int pair = used[i] << 8 | used[k];
            int32_t count = counts->pairs[pair];
            if (count <= 0 || (uint32_t)count < least)
                continue;
            int32_t beyond = rough_log2((uint64_t)count) + log_size - log_bytes[used[i]] - log_bytes[used[k]];
            int64_t gain = (int64_t)count * beyond;
            if (gain > most) {
                most = gain;
                best = pair;
            }
        }
    return best;
}

static int unused_byte(const Counts *counts)
{
    for (int byte = 0; byte < 256; byte++)
        if (!counts->bytes[byte])
            return byte;
    return -1;
}

static void recount(Counts *counts, int previous, const uint8_t *triple, int next)
{
    int left = triple[0], right = triple[1], fresh = triple[2];
    counts->bytes[left]--;
    counts->bytes[right]--;
    counts->bytes[fresh]++;
    counts->pairs[left << 8 | right]--;
    if (previous >= 0) {
        counts->pairs[previous << 8 | left]--;
        counts->pairs[previous << 8 | fresh]++;
    }
    if (next >= 0) {
        counts->pairs[right << 8 | next]--;
        counts->pairs[fresh << 8 | next]++;
    }
}

/* bytes before the next place in [at, size) where left and right stand side by side, copied to `out` on the way */
static size_t copy_until(const uint8_t *data, size_t at, size_t size, const uint8_t *triple, uint8_t *out)
{
    size_t begin = at;
#if defined(__SSE2__)
    __m128i left = _mm_set1_epi8((char)triple[0]), right = _mm_set1_epi8((char)triple[1]);
    for (; at + 17 <= size; at += 16) {
        __m128i here = _mm_loadu_si128((const __m128i *)(data + at));
        __m128i after = _mm_loadu_si128((const __m128i *)(data + at + 1));
        int hits = _mm_movemask_epi8(_mm_and_si128(_mm_cmpeq_epi8(here, left), _mm_cmpeq_epi8(after, right)));
        _mm_storeu_si128((__m128i *)(out + (at - begin)), here);
        if (hits)
            return at - begin + (size_t)__builtin_ctz((unsigned)hits);
    }
#endif
    for (; at + 1 < size && !(data[at] == triple[0] && data[at + 1] == triple[1]); at++)
        out[at - begin] = data[at];
    if (at + 1 == size) {
        out[at - begin] = data[at];
        at++;
    }
    return at - begin;
}

/* one merge from left to right; `out` is another buffer of `size` bytes; `counts` may be NULL */
static size_t merge(const uint8_t *data, size_t size, const uint8_t *triple, uint8_t *out, Counts *counts)
{
    size_t to = 0;
    for (size_t at = 0; at < size;) {
        size_t copied = copy_until(data, at, size, triple, out + to);
        at += copied;
        to += copied;
        if (at >= size)
            break;
        if (counts)
            recount(counts, to ? out[to - 1] : -1, triple, at + 2 < size ? data[at + 2] : -1);
        out[to++] = triple[2];
        at += 2;
    }
    return to;
}

int bpe_learn(const uint8_t *data, size_t size, int most, uint32_t least, uint8_t *pairs, int *count, uint8_t *out,
              size_t *out_size)
{
    Counts *counts = malloc(sizeof *counts);
    uint8_t *other = malloc(size + 1), *from = other, *to = out;
    if (!counts || !other) {
        free(counts);
        free(other);
        return KERNEL_NO_MEMORY;
    }
    memcpy(other, data, size);
    count_all(data, size, counts);
    for (*count = 0; *count < most; (*count)++) {
        int pair = best_pair(counts, size, least), fresh = unused_byte(counts);
        if (fresh < 0 || pair < 0)
            break;
        uint8_t *triple = pairs + 3 * *count;
        triple[0] = (uint8_t)(pair >> 8);
        triple[1] = (uint8_t)pair;
        triple[2] = (uint8_t)fresh;
        size = merge(from, size, triple, to, counts);
        uint8_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != out)
        memcpy(out, from, size);
    *out_size = size;
    free(counts);
    free(other);
    return KERNEL_OK;
}

int bpe_apply(const uint8_t *data, size_t size, const uint8_t *pairs, int count, uint8_t *out, size_t *out_size)
{
    uint8_t *other = malloc(size + 1), *from = other, *to = out;
    if (!other)
        return KERNEL_NO_MEMORY;
    memcpy(other, data, size);
    for (int i = 0; i < count; i++) {
        size = merge(from, size, pairs + 3 * i, to, NULL);
        uint8_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != out)
        memcpy(out, from, size);
    *out_size = size;
    free(other);
    return KERNEL_OK;
}

/* What a byte of the merged text stands for: a tree whose leaves are bytes. A byte value that a later merge took over
 * has another tree from then on; trees already made keep the old one, as undoing the merges backwards would. */
typedef struct {
    uint64_t length[512];
    uint16_t left[512], right[512], of_byte[256];
    size_t first_at[512]; /* where its expansion already stands in the output, +1; 0 = nowhere yet */
} Trees;

static void grow(Trees *trees, const uint8_t *pairs, int count, uint64_t limit)
{
    memset(trees, 0, sizeof *trees);
    for (int byte = 0; byte < 256; byte++) {
        trees->length[byte] = 1;
        trees->of_byte[byte] = (uint16_t)byte;
    }
    for (int i = 0; i < count; i++) {
        int node = 256 + i;
        trees->left[node] = trees->of_byte[pairs[3 * i]];
        trees->right[node] = trees->of_byte[pairs[3 * i + 1]];
        uint64_t length = trees->length[trees->left[node]] + trees->length[trees->right[node]];
        trees->length[node] = length > limit ? limit + 1 : length;
        trees->of_byte[pairs[3 * i + 2]] = (uint16_t)node;
    }
}

/* writes the expansion of a node at out[at]; recursion is at most 255 deep */
static void expand(Trees *trees, int node, uint8_t *out, size_t at)
{
    if (node < 256) {
        out[at] = (uint8_t)node;
        return;
    }
    if (trees->first_at[node]) {
        memcpy(out + at, out + trees->first_at[node] - 1, trees->length[node]);
        return;
    }
    expand(trees, trees->left[node], out, at);
    expand(trees, trees->right[node], out, at + trees->length[trees->left[node]]);
    trees->first_at[node] = at + 1;
}

int bpe_expand(const uint8_t *data, size_t size, const uint8_t *pairs, int count, uint8_t *out, size_t out_size)
{
    Trees *trees = malloc(sizeof *trees);
    if (!trees)
        return KERNEL_NO_MEMORY;
    grow(trees, pairs, count, out_size);
    size_t to = 0;
    int state = KERNEL_OK;
    for (size_t i = 0; i < size; i++) {
        int node = trees->of_byte[data[i]];
        uint64_t length = trees->length[node];
        if (length > out_size - to) {
            state = KERNEL_CORRUPT;
            break;
        }
        size_t seen = trees->first_at[node];
        if (seen && length <= 16 && out_size - to >= 16 && to - (seen - 1) >= 16)
            memcpy(out + to, out + seen - 1, 16);
        else
            expand(trees, node, out, to);
        to += length;
    }
    free(trees);
    return state == KERNEL_OK && to != out_size ? KERNEL_CORRUPT : state;
}
