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

/* Whether the device can run any of them; a tuning row's values of a tile (OD_GPU_TILE_PARAMETERS). */
bool od_gpu_tiles_fit(const od_device *device);
bool od_gpu_values_fit(const od_device *device, const int *values);

/* A tile as the first parameters of a table. */
#define OD_GPU_BY_FILL "the largest of 128x64x16, 64x64x8, 32x64x16 that gives each unit two work-groups"
#define OD_GPU_TILE_PARAMETERS                                                                                         \
    {"bm", OD_TUNING_VALUES(32, 64, 128), OD_GPU_BY_FILL}, {"bn", OD_TUNING_VALUES(32, 64, 128), OD_GPU_BY_FILL},      \
        {"bk", OD_TUNING_VALUES(8, 16, 32), OD_GPU_BY_FILL}, {"tm", OD_TUNING_VALUES(4, 8), "8, 8, 4 by tile"}, {      \
        "tn", OD_TUNING_VALUES(4, 8), "4"                                                                              \
    }
#define OD_GPU_PER_UNIT_PARAMETER                                                                                      \
    { "per_unit", OD_TUNING_VALUES(2, 4, 8, 16, 32), "chunks for 8 work-groups a unit" }

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

/* Work-groups (columns, rows, layers) with this tile, and how many. */
uint64_t od_gpu_tile_count(const od_gpu_tile *tile, uint64_t rows, uint64_t columns, uint64_t layers);
od_range od_gpu_tile_range(const od_gpu_tile *tile, uint64_t rows, uint64_t columns, uint64_t layers);

/* QUADS of the kernels: channels a and b, the spans that are read or written by the vector (OD_NO_SPAN: none). */
int od_gpu_quads(int a, int b, const od_span *spans, size_t count);

/* Memory for what a run finds out for batch norm, args->stats or args->grads, in `parts` parts of c channels for each
 * group; neither: *partial is NULL. After the run: many parts are replaced by few. */
od_status od_gpu_parts_open(od_device *device, const od_conv_args *args, uint64_t parts, int c, od_buffer **partial);
od_status od_gpu_parts_merge(od_device *device, const od_conv_args *args, int c);

enum {
    OD_GPU_MAX_CHUNKS = 64,          /* of backward by weights */
    OD_GPU_MAX_PART_BYTES = 1 << 26, /* of what they give together */
};

/* Loop rounds of a work-item for each term of a sum, with its share of the loads. */
enum { OD_GPU_LOOPS_PER_TERM = 8 };

#endif
