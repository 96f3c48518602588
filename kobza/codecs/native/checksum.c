/* CRC-32C (Castagnoli), RFC 3720 appendix B.4: by the processor's instruction where it has one, else eight tables. */
#include "kernels.h"

#include <string.h>

#define POLYNOMIAL 0x82F63B78u

static uint32_t table[8][256];
static int has_instruction;

void crc32c_prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t row = byte;
        for (int bit = 0; bit < 8; bit++)
            row = row >> 1 ^ (row & 1 ? POLYNOMIAL : 0);
        table[0][byte] = row;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++)
            table[k][byte] = table[k - 1][byte] >> 8 ^ table[0][table[k - 1][byte] & 255];
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    has_instruction = __builtin_cpu_supports("sse4.2");
#endif
}

static uint32_t by_tables(uint32_t state, const uint8_t *data, size_t size)
{
    for (; size >= 8; size -= 8, data += 8) {
        uint32_t low = state ^ (data[0] | data[1] << 8 | data[2] << 16 | (uint32_t)data[3] << 24);
        state = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24] ^
                table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^ table[0][data[7]];
    }
    for (; size; size--)
        state = table[0][(state ^ *data++) & 255] ^ state >> 8;
    return state;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t state, const uint8_t *data, size_t size)
{
    uint64_t wide = state;
    for (; size >= 8; size -= 8, data += 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    state = (uint32_t)wide;
    for (; size; size--)
        state = __builtin_ia32_crc32qi(state, *data++);
    return state;
}
#endif

uint32_t crc32c_update(uint32_t value, const uint8_t *data, size_t size)
{
    uint32_t state = ~value;
#if defined(__x86_64__) && defined(__GNUC__)
    if (has_instruction)
        return ~by_instruction(state, data, size);
#endif
    return ~by_tables(state, data, size);
}
