/* Random numbers by counter: Philox 4x32-10, the same bits on host and device (cl/philox.clh). A number is a function
 * of (seed, stream, place), so that nothing but the seed needs to be saved.
 *
 * Key: {seed low, seed high}. Counter of element i of a fill: {i / 4 low, i / 4 high, stream low, stream high}, its
 * word i % 4. Other uses than fills put their OD_RNG_ number where a fill's counter has zero in practice. */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

enum { OD_RNG_PERMUTATION = 2, OD_RNG_AUGMENT = 3, OD_RNG_TEST = 4 };

void od_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

/* [0, 1), a multiple of 2^-24. */
static inline float od_rng_u01(uint32_t bits) {
    return (float)(bits >> 8) * 0x1p-24f;
}

void od_rng_fill_uniform(float *out, size_t n, float low, float high, uint64_t seed, uint64_t stream);
void od_rng_fill_normal(float *out, size_t n, float deviation, uint64_t seed, uint64_t stream);

/* 0..n-1 in an order drawn from (seed, stream); n < 2^32. */
void od_rng_permutation(uint32_t *order, size_t n, uint64_t seed, uint64_t stream);

#endif
