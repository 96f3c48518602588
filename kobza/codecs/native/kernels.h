/* Inner loops of the codecs. Every function has a plain Python twin (plain_*.py) that gives the same bytes.
 * None of them touches Python, allocates more than it says, or reads or writes outside the ranges it is given. */
#ifndef KOBZA_KERNELS_H
#define KOBZA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define KERNEL_OK 0
#define KERNEL_CORRUPT (-1)
#define KERNEL_NO_MEMORY (-2)

/* checksum.c */
void crc32c_prepare(void);
uint32_t crc32c_update(uint32_t value, const uint8_t *data, size_t size);

/* bpe.c: pairs are triples (left, right, new). `out` holds at least `size` bytes. */
int bpe_learn(const uint8_t *data, size_t size, int most, uint32_t least, uint8_t *pairs, int *count, uint8_t *out,
              size_t *out_size);
int bpe_apply(const uint8_t *data, size_t size, const uint8_t *pairs, int count, uint8_t *out, size_t *out_size);
int bpe_expand(const uint8_t *data, size_t size, const uint8_t *pairs, int count, uint8_t *out, size_t out_size);

/* ulz.c: `out` of the encoder holds at least ulz_bound(size) bytes. */
size_t ulz_bound(size_t size);
int ulz_encode(const uint8_t *data, size_t size, int level, uint8_t *out, size_t *out_size);
int ulz_decode(const uint8_t *data, size_t size, uint8_t *out, size_t out_size);

/* mixing.c; the encoder stops with *out_size = room when `room` bytes do not suffice. */
void mixing_prepare(void);
int mixing_encode(const uint8_t *data, size_t size, uint8_t *out, size_t room, size_t *out_size);
int mixing_decode(const uint8_t *data, size_t size, uint8_t *out, size_t out_size);

/* the same predictions bit by bit, for up to `streams` texts of `size` bytes each that learn together */
typedef struct Together Together;
Together *together_make(size_t size, int streams);
void together_free(Together *t);
int together_turn(Together *t, int stream);
int together_predict(Together *t);
int together_update(Together *t, int bit);

/* picture.c, the encoder stops as above; samples are interleaved, one byte each, or two, the larger first, when the
 * depth is above 8 bits. */
#define PICTURE_PHOTO 0
#define PICTURE_GRAPHICS 1
#define PICTURE_INDEXED 2
typedef struct {
    int width, height, channels, depth, mode;
} PictureShape;
int picture_encode(const uint8_t *samples, const PictureShape *shape, uint8_t *out, size_t room, size_t *out_size);
int picture_decode(const uint8_t *data, size_t size, const PictureShape *shape, uint8_t *samples);

#endif
