#include "base/rng.h"

#include <Random123/philox.h>
#include <math.h>

void od_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]) {
    philox4x32_ctr_t c = {{counter[0], counter[1], counter[2], counter[3]}};
    philox4x32_key_t k = {{key[0], key[1]}};
    c = philox4x32(c, k);
    for (int i = 0; i < 4; i++)
        out[i] = c.v[i];
}

static void draw_block(uint32_t out[4], uint32_t low, uint32_t high, uint64_t seed, uint64_t stream) {
    const uint32_t counter[4] = {low, high, (uint32_t)stream, (uint32_t)(stream >> 32)};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    od_philox(out, counter, key);
}

/* The four words of elements i to i + 3. */
static void draw_fill(uint32_t out[4], size_t i, uint64_t seed, uint64_t stream) {
    uint64_t block = i / 4;
    draw_block(out, (uint32_t)block, (uint32_t)(block >> 32), seed, stream);
}

void od_rng_fill_uniform(float *out, size_t n, float low, float high, uint64_t seed, uint64_t stream) {
    uint32_t bits[4] = {0};
    for (size_t i = 0; i < n; i++) {
        if (i % 4 == 0)
            draw_fill(bits, i, seed, stream);
        out[i] = fmaf(high - low, od_rng_u01(bits[i % 4]), low);
    }
}

void od_rng_fill_normal(float *out, size_t n, float deviation, uint64_t seed, uint64_t stream) {
    uint32_t bits[4] = {0};
    for (size_t i = 0; i < n; i += 2) { /* Box and Muller: two words make two numbers */
        if (i % 4 == 0)
            draw_fill(bits, i, seed, stream);
        double u = ((double)(bits[i % 4] >> 8) + 1) * 0x1p-24; /* (0, 1]: its logarithm is finite */
        double radius = sqrt(-2 * log(u)), angle = 2 * M_PI * od_rng_u01(bits[i % 4 + 1]);
        out[i] = (float)(deviation * radius * cos(angle));
        if (i + 1 < n)
            out[i + 1] = (float)(deviation * radius * sin(angle));
    }
}

void od_rng_permutation(uint32_t *order, size_t n, uint64_t seed, uint64_t stream) {
    uint32_t bits[4] = {0};
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    for (size_t i = n; i-- > 1;) { /* Fisher and Yates, from the end */
        draw_block(bits, (uint32_t)i, OD_RNG_PERMUTATION, seed, stream);
        uint64_t r = (uint64_t)bits[0] << 32 | bits[1]; /* 64 bits: the bias of % is below 2^-32 */
        size_t j = (size_t)(r % (i + 1));
        uint32_t swapped = order[i];
        order[i] = order[j];
        order[j] = swapped;
    }
}
