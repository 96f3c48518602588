/* Context mixing in integers only, hence the same on every machine. Twin: plain_mixing.py, which explains the parts.
 *
 * After Mahoney (2005), "Adaptive weighing of context models for lossless data compression", and his "Data Compression
 * Explained" (2013): bit histories in hashed slots, adaptive probability maps, logistic mixing, final estimation. */
#include "bitcoder.h"
#include "kernels.h"
#include "mixing_tables.h"

#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GNUC__)
#define FETCH(address) __builtin_prefetch(address)
#else
#define FETCH(address) (void)0
#endif

#define CONTEXTS 8    /* orders 1 to 6, word, word and the one before */
#define INPUTS 24     /* 2 per context, 2 of the match, 1 direct, a constant; padded to a multiple of 8 */
#define SETS 3        /* sets of weights, each chosen by another context */
#define LONGEST 65535 /* match length at which counting stops */
#define SHORTEST 5    /* bytes hashed to find a match */
#define PHI 0x9E3779B97F4A7C15u
#define RATE 5 /* of the weights */
#define LIMIT 1023 /* observations after which a probability map forgets at a steady rate */

typedef struct {
    uint8_t *arena, *slots, *bucket[CONTEXTS]; /* 16 bytes: check, then the histories of the 15 prefixes of a nibble */
    uint64_t hash[CONTEXTS], row_hash[CONTEXTS], history, word, word_before;
    int bucket_bits, direct_bits, final_bits, seen_bits;
    uint32_t map[CONTEXTS][256], match_map[2][64], *mapped[CONTEXTS], *match_mapped;
    uint16_t *direct, *direct_row; /* order 1 once more, as plain probabilities in rows of 16 */
    int16_t weight[SETS][256][INPUTS], *chosen[SETS], input[INPUTS], last_weight[256][8], *last_chosen, last_input[8];
    int mixed[SETS], last_mixed;
    uint16_t *final, *final_row, *final_at;
    const uint8_t *text;
    uint32_t *seen, at, match_at, match_length, end; /* no match runs past `end` */
    int bits, partial;    /* how many bits of the byte are known; they, behind a 1 */
    int node;             /* 1 to 15: the bits of the present nibble, behind a 1 */
    int expected;         /* next bit by the match; -1 without one */
    int probability;
} Mixer;

static void mixer_free(Mixer *m)
{
    if (!m)
        return;
    free(m->arena);
    free(m);
}

static void start_values(Mixer *m)
{
    for (int i = 0; i < CONTEXTS; i++)
        memcpy(m->map[i], first_map, sizeof first_map);
    for (int length = 0; length < 64; length++) {
        uint32_t p = 4194303u / (uint32_t)(length + 2);
        m->match_map[0][length] = p << 10;
        m->match_map[1][length] = (4194303u - p) << 10;
    }
    for (size_t i = 0; i < (size_t)1 << m->direct_bits; i++)
        m->direct[i] = 32768;
    for (size_t i = 0; i < (size_t)1 << m->final_bits; i++)
        for (int k = 0; k < 33; k++)
            m->final[i * 33 + (size_t)k] = (uint16_t)(squash((k - 16) * 128));
    for (int set = 0; set < SETS; set++)
        for (int i = 0; i < 256; i++)
            for (int k = 0; k < INPUTS; k++)
                m->weight[set][i][k] = k < 2 * CONTEXTS ? (k & 1 ? 1024 : 6000) : 4000;
    for (int i = 0; i < 256; i++)
        for (int k = 0; k < SETS; k++)
            m->last_weight[i][k] = 32767 / SETS;
}

/* all tables in one piece, in huge pages where the system has them: the contexts jump about in it */
static int take_arena(Mixer *m)
{
    size_t slots = ((size_t)CONTEXTS << m->bucket_bits) * 16, seen = ((size_t)1 << m->seen_bits) * 4;
    size_t direct = ((size_t)1 << m->direct_bits) * 2, final = ((size_t)1 << m->final_bits) * 33 * 2;
    size_t page = (size_t)1 << 21, whole = (slots + seen + direct + final + page - 1) & ~(page - 1);
    m->arena = aligned_alloc(page, whole);
    if (!m->arena)
        return 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(m->arena, whole, MADV_HUGEPAGE);
#endif
    memset(m->arena, 0, slots + seen);
    m->slots = m->arena;
    m->seen = (uint32_t *)(m->arena + slots);
    m->direct = (uint16_t *)(m->arena + slots + seen);
    m->final = (uint16_t *)(m->arena + slots + seen + direct);
    return 1;
}

static Mixer *mixer_make(size_t size, const uint8_t *text)
{
    Mixer *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    int scale = log2_above(size);
    m->bucket_bits = between(8, scale + 1, 20);
    m->direct_bits = between(9, scale, 13) + 4;
    m->final_bits = between(8, scale, 16);
    m->seen_bits = between(8, scale, 20);
    if (!take_arena(m)) {
        free(m);
        return NULL;
    }
    m->text = text;
    m->end = UINT32_MAX;
    m->partial = 1;
    start_values(m);
    return m;
}

/* the bucket of a hash: of two neighbors the one with the right check, else the one that knows less, emptied */
static uint8_t *find_bucket(Mixer *m, int context, uint64_t hash)
{
    uint8_t *table = m->slots + ((size_t)context << m->bucket_bits) * 16;
    size_t at = (size_t)(hash >> (64 - m->bucket_bits));
    uint8_t check = (uint8_t)(hash & 255), *first = table + at * 16, *second = table + (at ^ 1) * 16;
    if (first[0] == check)
        return first;
    if (second[0] == check)
        return second;
    uint8_t *loser = first[1] <= second[1] ? first : second;
    memset(loser, 0, 16);
    loser[0] = check;
    return loser;
}

static uint64_t low_bytes(const Mixer *m, int n)
{
    return m->history & (((uint64_t)1 << 8 * n) - 1);
}

static void hash_contexts(Mixer *m)
{
    for (int order = 1; order <= 6; order++)
        m->hash[order - 1] = (low_bytes(m, order) + ((uint64_t)order << 56)) * PHI;
    m->hash[6] = (m->word + ((uint64_t)7 << 56)) * PHI;
    m->hash[7] = (m->word * 0x2545F4914F6CDD1Du + m->word_before + ((uint64_t)8 << 56)) * PHI;
}

static uint64_t nibble_hash(uint64_t hash, int partial)
{
    hash = ((hash ^ hash >> 29) + (uint64_t)partial) * 0xBF58476D1CE4E5B9u;
    return hash ^ hash >> 31;
}

/* ask for the buckets of the nibble that begins behind `partial`, before they are needed */
static void fetch_rows(Mixer *m, int partial)
{
    for (int i = 0; i < CONTEXTS; i++) {
        uint64_t hash = m->row_hash[i] = nibble_hash(m->hash[i], partial);
        FETCH(m->slots + (((uint64_t)i << m->bucket_bits) + (hash >> (64 - m->bucket_bits))) * 16);
    }
}

/* at the first and the fifth bit of a byte */
static void find_rows(Mixer *m)
{
    uint64_t context = (m->history & 255) << 8 | (uint64_t)m->partial;
    m->direct_row = m->direct + (size_t)((context * PHI) >> (64 - m->direct_bits + 4)) * 16;
    for (int i = 0; i < CONTEXTS; i++)
        m->bucket[i] = find_bucket(m, i, m->row_hash[i]);
    m->node = 1;
}

static void put_match(Mixer *m)
{
    m->expected = -1;
    m->match_mapped = NULL;
    m->input[2 * CONTEXTS] = m->input[2 * CONTEXTS + 1] = 0;
    if (!m->match_length)
        return;
    int byte = m->text[m->match_at] | 256;
    int left = 8 - m->bits;
    if (byte >> left != m->partial) {
        m->match_length = 0;
        return;
    }
    m->expected = byte >> (left - 1) & 1;
    int length = (int)m->match_length;
    if (length >= 32)
        length = between(32, 32 + (log2_above(m->match_length) - 5) * 3, 63);
    m->match_mapped = &m->match_map[m->expected][length];
    int p = (int)(*m->match_mapped >> 20);
    m->input[2 * CONTEXTS] = stretch_table[p];
    m->input[2 * CONTEXTS + 1] = (int16_t)((p - 2048) >> 1);
}

/* the row of the final estimation for this bit, known before the mix that will choose within it */
static void fetch_final(Mixer *m)
{
    uint64_t context = (m->history & 255) << 8 | (uint64_t)m->partial;
    m->final_row = m->final + (size_t)((context * PHI) >> (64 - m->final_bits)) * 33;
    FETCH(m->final_row + 4);
    FETCH(m->final_row + 28);
}

static void put_inputs(Mixer *m)
{
    fetch_final(m);
    for (int i = 0; i < CONTEXTS; i++) {
        int state = m->bucket[i][m->node];
        m->mapped[i] = &m->map[i][state];
        int p = (int)(*m->mapped[i] >> 20);
        m->input[2 * i] = state ? stretch_table[p] : 0;
        m->input[2 * i + 1] = state ? (int16_t)((p - 2048) >> 1) : 0;
    }
    m->input[2 * CONTEXTS + 2] = stretch_table[m->direct_row[m->node] >> 4];
    m->input[2 * CONTEXTS + 3] = 256;
    put_match(m);
}

static int dot(const int16_t *a, const int16_t *b, int n)
{
    int32_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum >> 15;
}

static void mix(Mixer *m)
{
    int length = m->match_length ? between(1, log2_above(m->match_length), 15) : 0;
    m->chosen[0] = m->weight[0][m->partial];
    m->chosen[1] = m->weight[1][length << 2 | (m->expected + 1)];
    m->chosen[2] = m->weight[2][m->history & 255];
    for (int set = 0; set < SETS; set++) {
        m->mixed[set] = between(-2047, dot(m->input, m->chosen[set], INPUTS), 2047);
        m->last_input[set] = (int16_t)m->mixed[set];
    }
    m->last_chosen = m->last_weight[m->partial];
    m->last_mixed = between(-2047, dot(m->last_input, m->last_chosen, 8), 2047);
}

static int refine(Mixer *m)
{
    int x = m->last_mixed + 2048, part = x & 127;
    uint16_t *at = m->final_row + (x >> 7);
    m->final_at = at + (part >= 64);
    return (at[0] * (128 - part) + at[1] * part) >> 7;
}

/* probability that the next bit is 1 [1/65536] */
static void predict(Mixer *m)
{
    put_inputs(m);
    mix(m);
    m->probability = between(16, (squash(m->last_mixed) + refine(m) + 1) >> 1, 65520);
}

static size_t match_slot(const Mixer *m)
{
    return (size_t)((low_bytes(m, SHORTEST) * PHI) >> (64 - m->seen_bits));
}

static void find_match(Mixer *m)
{
    if (m->match_length) {
        m->match_at++;
        m->match_length += m->match_length < LONGEST;
        if (m->match_at >= m->end)
            m->match_length = 0;
    }
    if (m->at < SHORTEST)
        return;
    uint32_t *seen = m->seen + match_slot(m);
    if (!m->match_length && *seen) {
        m->match_at = *seen;
        while (m->match_length < 400 && m->match_length < m->match_at && m->match_length < m->at &&
               m->text[m->match_at - 1 - m->match_length] == m->text[m->at - 1 - m->match_length])
            m->match_length++;
        if (m->match_length < SHORTEST)
            m->match_length = 0;
    }
    *seen = m->at;
}

static void add_byte(Mixer *m, int byte)
{
    m->at++;
    m->history = m->history << 8 | (uint64_t)byte;
    int letter = byte >= 'A' && byte <= 'Z' ? byte + 32 : byte;
    if ((letter >= 'a' && letter <= 'z') || letter >= 128) {
        m->word = (m->word + (uint64_t)letter + 1) * 0xD6E8FEB86659FD93u;
    } else if (m->word) {
        m->word_before = m->word;
        m->word = 0;
    }
    hash_contexts(m);
    FETCH(m->seen + match_slot(m));
}

static void learn(Mixer *m, int bit)
{
    for (int set = 0; set < SETS; set++) {
        int error = (((bit << 16) - squash(m->mixed[set])) >> 4) * RATE;
        if (error < -16 || error > 16) /* inputs are below 2048, so that less than this moves no weight */
            train(m->input, m->chosen[set], error, INPUTS);
    }
    train(m->last_input, m->last_chosen, (((bit << 16) - squash(m->last_mixed)) >> 4), 8);
    for (int i = 0; i < CONTEXTS; i++) {
        adapt(m->mapped[i], bit, LIMIT);
        m->bucket[i][m->node] = next_state[m->bucket[i][m->node]][bit];
    }
    approach(&m->direct_row[m->node], bit, 4);
    if (m->match_mapped)
        adapt(m->match_mapped, bit, LIMIT);
    approach(m->final_at, bit, 6);
}

static void update(Mixer *m, int bit)
{
    int partial = m->partial << 1 | bit, bits = (m->bits + 1) & 7;
    if (!bits) {
        add_byte(m, partial & 255);
        partial = 1;
    }
    if (!(bits & 3))
        fetch_rows(m, partial); /* they come from memory while the present ones learn */
    learn(m, bit);
    m->bits = bits;
    m->partial = partial;
    m->node = m->node << 1 | bit;
    if (!bits)
        find_match(m);
    if (!(bits & 3))
        find_rows(m);
}

static void begin(Mixer *m)
{
    hash_contexts(m);
    fetch_rows(m, 1);
    find_rows(m);
}

int mixing_encode(const uint8_t *data, size_t size, uint8_t *out, size_t room, size_t *out_size)
{
    Mixer *m = mixer_make(size, data);
    if (!m)
        return KERNEL_NO_MEMORY;
    BitCoder coder;
    coder_write_to(&coder, out, room);
    begin(m);
    for (size_t i = 0; i < size; i++)
        for (int k = 7; k >= 0; k--) {
            int bit = data[i] >> k & 1;
            predict(m);
            coder_code(&coder, bit, m->probability);
            update(m, bit);
        }
    *out_size = coder_finish(&coder);
    mixer_free(m);
    return KERNEL_OK;
}

int mixing_decode(const uint8_t *data, size_t size, uint8_t *out, size_t out_size)
{
    Mixer *m = mixer_make(out_size, out);
    if (!m)
        return KERNEL_NO_MEMORY;
    BitCoder coder;
    coder_read_from(&coder, data, size);
    begin(m);
    for (size_t i = 0; i < out_size; i++)
        for (int k = 0; k < 8; k++) {
            predict(m);
            int bit = coder_code(&coder, 0, m->probability);
            if (k == 7)
                out[i] = (uint8_t)(m->partial << 1 | bit);
            update(m, bit);
        }
    mixer_free(m);
    return KERNEL_OK;
}

/* several texts that learn together; `now` is read, of the others is kept where they stand */
typedef struct {
    uint64_t hash[CONTEXTS], history, word, word_before;
    uint32_t at, match_at, match_length;
} Place;

struct Together {
    Mixer *mixer;
    uint8_t *text;
    Place *places;
    size_t room, end; /* bytes of each text, place where the present one's end */
    int streams, now, is_ready; /* ready to learn: the next bit was predicted */
};

void together_free(Together *t)
{
    if (!t)
        return;
    mixer_free(t->mixer);
    free(t->text);
    free(t->places);
    free(t);
}

Together *together_make(size_t size, int streams)
{
    Together *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->room = size;
    t->streams = streams;
    t->text = calloc((size_t)streams, size + 1);
    t->places = calloc((size_t)streams, sizeof *t->places);
    t->mixer = t->text && t->places ? mixer_make(size, t->text) : NULL;
    if (!t->mixer) {
        together_free(t);
        return NULL;
    }
    t->mixer->end = (uint32_t)(size * (size_t)streams);
    begin(t->mixer);
    for (int i = 0; i < streams; i++) {
        memcpy(t->places[i].hash, t->mixer->hash, sizeof t->mixer->hash);
        t->places[i].at = (uint32_t)(size * (size_t)i);
    }
    t->end = size;
    return t;
}

/* go on with another text; only between two bytes */
int together_turn(Together *t, int stream)
{
    Mixer *m = t->mixer;
    if (m->bits || stream < 0 || stream >= t->streams)
        return KERNEL_CORRUPT;
    Place *old = t->places + t->now, *new = t->places + stream;
    memcpy(old->hash, m->hash, sizeof m->hash);
    old->history = m->history, old->word = m->word, old->word_before = m->word_before;
    old->at = m->at, old->match_at = m->match_at, old->match_length = m->match_length;
    memcpy(m->hash, new->hash, sizeof m->hash);
    m->history = new->history, m->word = new->word, m->word_before = new->word_before;
    m->at = new->at, m->match_at = new->match_at, m->match_length = new->match_length;
    t->now = stream;
    t->end = t->room * (size_t)(stream + 1);
    t->is_ready = 0;
    fetch_rows(m, 1);
    find_rows(m);
    return KERNEL_OK;
}

int together_predict(Together *t)
{
    predict(t->mixer);
    t->is_ready = 1;
    return t->mixer->probability;
}

int together_update(Together *t, int bit)
{
    Mixer *m = t->mixer;
    if (m->at >= t->end || !t->is_ready)
        return KERNEL_CORRUPT;
    if (m->bits == 7)
        t->text[m->at] = (uint8_t)(m->partial << 1 | bit);
    t->is_ready = 0;
    update(m, bit);
    return KERNEL_OK;
}
