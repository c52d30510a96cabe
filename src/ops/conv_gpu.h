/* What the GPU family's convolutions share: tiles of matrix products through local memory, and statistics. */
#ifndef OPS_CONV_GPU_H
#define OPS_CONV_GPU_H

#include "ops/conv_impl.h"
#include "ops/tunable.h"

/* A tile of bm x bn, tm x tn of it for each work-item, in steps of bk; two local buffers. As cl/conv_gpu.clh wants it:
 * tm and tn multiples of 4, bm*bk and bn*bk multiples of 4 * work-items. */
typedef struct od_gpu_tile {
    int bm, bn, bk, tm, tn;
} od_gpu_tile;
enum { OD_GPU_TILES = 3 };
extern const od_gpu_tile od_gpu_tiles[OD_GPU_TILES]; /* largest first */
extern int od_gpu_tile_forced;                       /* for tests: 1 .. OD_GPU_TILES; 0: by the rule */

/* Whether the device can run any of them. */
bool od_gpu_tiles_fit(const od_device *device);

/* A kernel with a tile. */
typedef struct od_gpu_choice {
    od_gpu_tile tile;
    int per_unit; /* work-groups for each compute unit that backward by weights cuts chunks for */
    od_kernel *kernel;
} od_gpu_choice;

/* For rows x columns of each of `layers` products: the tile that a tuning row of `table` (the tile's five sizes, then
 * per_unit) says for the class; or else the largest that the device can run and that gives each compute unit two
 * work-groups; where none does, the smallest. `more`: further build options. */
od_status od_gpu_tile_kernel(od_device *device, const char *program, const char *name, const char *more, uint64_t rows,
                             uint64_t columns, uint64_t layers, const od_tuning_table *table, const char *class,
                             od_gpu_choice *choice);

/* Work-groups (columns, rows, layers) with this tile. */
od_range od_gpu_tile_range(const od_gpu_tile *tile, uint64_t rows, uint64_t columns, uint64_t layers);

/* QUADS of the kernels: channels a and b, the spans that are read or written by the vector (OD_NO_SPAN: none). */
int od_gpu_quads(int a, int b, const od_span *spans, size_t count);

/* Replace many parts of statistics over c channels by few. */
od_status od_gpu_stats_merge(od_device *device, od_conv_stats *stats, int c);

/* Loop rounds of a work-item for each term of a sum, with its share of the loads. */
enum { OD_GPU_LOOPS_PER_TERM = 8 };

#endif
