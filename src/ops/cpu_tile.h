/* The register tiles of the CPU family's products and convolutions: accumulators, the loaded vectors and one broadcast
 * must fit the register file (AVX-512: 32 registers of 16 floats; AVX2: 16 of 8; NEON: 32 of 4). */
#ifndef OFFDIAG_OPS_CPU_TILE_H
#define OFFDIAG_OPS_CPU_TILE_H

#include <stddef.h>

#include "offdiag/device.h"

typedef struct od_cpu_tile {
    int vw, vecs;       /* floats in a vector, vectors in a row: vw * vecs columns, output channels of a convolution */
    int rows;           /* pixels, tiles of a Winograd convolution or rows of a product; forward and backward by data */
    int weight_rows[2]; /* input channels, backward by weights: two to choose from, see od_cpu_tile_rows */
    int winograd_block[2]; /* tiles that Winograd's backward by weights transforms at a time: with few sums, with many
                            */
    int slab[2];       /* pixels that the direct backward by weights takes at a time: with few channels, with many */
    size_t core_cache; /* bytes that a core's own cache holds at least; OpenCL does not tell */
} od_cpu_tile;

/* The tiles from the widest vectors to the narrowest; the last is for drivers whose compilers take half a minute for
 * the unrolled code of a larger one. */
enum { OD_CPU_TILES = 4 };
extern const od_cpu_tile od_cpu_tiles[OD_CPU_TILES];
extern unsigned od_cpu_tile_width; /* for tests: vectors of this width, 1 for the last tile; 0: the device's */

/* Which of them suits the device: of the widest vectors that it has. */
size_t od_cpu_tile_choose(const od_device *device);
const od_cpu_tile *od_cpu_tile_of(const od_device *device);
/* Rows that the tiles of backward by weights have for so many input channels: what wastes less of the last tile. */
int od_cpu_tile_rows(const od_cpu_tile *tile, int channels);

#endif
