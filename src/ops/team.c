#include "ops/team.h"

#include "ops/variant.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

typedef struct layout {
    const od_span *spans;
    size_t span_count;
    int c; /* 0: not a matrix */
} layout;

static bool aligned_by_4(const od_device *device, const void *shape, const char **why) {
    (void)device;
    const layout *l = shape;
    for (size_t i = 0; i < l->span_count; i++)
        if (l->spans[i].offset % 4 != 0) {
            *why = "an offset is not a multiple of 4";
            return false;
        }
    *why = "the number of columns is not a multiple of 4";
    return l->c % 4 == 0;
}

static bool narrow(const od_device *device, const void *shape, const char **why) {
    const layout *l = shape;
    if (l->c > 32) {
        *why = "more than 32 columns";
        return false;
    }
    return aligned_by_4(device, shape, why);
}

static bool small(const od_device *device, const void *shape, const char **why) {
    (void)shape;
    *why = "for drivers that compile long kernels slowly";
    return od_device_small_tiles(device);
}

/* A CPU core takes 64 KiB of each tensor with the widest vectors; narrower registers split them. */
static const od_team team_cpu = {"-DV=16", 1, 16384, {0}};
static const od_team team_small = {"-DV=4", 1, 16384, {0}};
static const od_team team_gpu_4 = {"-DV=4 -DALIGNED -DTEAM=256", 256, 4096, {0}};
static const od_team team_gpu = {"-DV=1 -DTEAM=256", 256, 4096, {0}};
static const od_team team_ref = {"-DV=1", 1, 1024, {0}};

od_team od_team_choose(const od_device *device, const char *operation, const od_span *spans, size_t span_count) {
    static const od_variant variants[] = {
        {"cpu_small", OD_FAMILY_CPU, small, &team_small},
        {"cpu", OD_FAMILY_CPU, NULL, &team_cpu},
        {"gpu_float4", OD_FAMILY_GPU, aligned_by_4, &team_gpu_4},
        {"gpu", OD_FAMILY_GPU, NULL, &team_gpu},
        {"ref", OD_FAMILY_REF, NULL, &team_ref},
    };
    layout l = {spans, span_count, 0};
    return *(const od_team *)variants[od_variant_choose(device, operation, variants, COUNT(variants), &l)].run;
}

od_team od_team_scalar(const od_device *device, const char *operation) {
    static const od_team scalar_gpu = {"-DV=1 -DTEAM=64", 64, 4096, {0}};
    static const od_variant variants[] = {
        {"cpu_small", OD_FAMILY_CPU, small, &team_small},
        {"cpu", OD_FAMILY_CPU, NULL, &team_cpu}, /* the same program as of the operations that use its vectors */
        {"gpu", OD_FAMILY_GPU, NULL, &scalar_gpu},
        {"ref", OD_FAMILY_REF, NULL, &team_ref},
    };
    return *(const od_team *)variants[od_variant_choose(device, operation, variants, COUNT(variants), NULL)].run;
}

od_status od_team_launch(od_device *device, const od_team *team, const char *program, const char *name, size_t groups,
                         const od_arg *args, size_t arg_count) {
    od_kernel *kernel;
    od_status status = od_kernel_get(device, program, team->options, name, &kernel);
    od_range range = OD_RANGE1(groups * team->size, team->size);
    range.work = team->work;
    return status ? status : od_launch(kernel, range, args, arg_count);
}

/* Without the chunks, which depend on the shape. */
static const od_columns columns_cpu = {"-DV=16 -DNV=4 -DTX=1 -DTY=1", 1, 0, 16, 0, 0};
static const od_columns columns_small = {"-DV=4 -DNV=2 -DTX=1 -DTY=1", 1, 0, 4, 0, 0};
static const od_columns columns_gpu_narrow = {"-DV=4 -DALIGNED -DNV=1 -DTX=4 -DTY=64", 256, 16, 16, 0, 0};
static const od_columns columns_gpu_4 = {"-DV=4 -DALIGNED -DNV=1 -DTX=16 -DTY=16", 256, 64, 64, 0, 0};
static const od_columns columns_gpu = {"-DV=1 -DNV=1 -DTX=32 -DTY=8", 256, 32, 32, 0, 0};
static const od_columns columns_ref = {"-DV=1 -DNV=1 -DTX=1 -DTY=1", 1, 1, 1, 0, 0};

static size_t clamp(size_t x, size_t low, size_t high) {
    return x < low ? low : x > high ? high : x;
}

static size_t cpu_chunk_rows(size_t c) {
    return clamp(32768 / c, 32, 2048);
}

/* Of a chunk, twice: its rows, in each of which vectors of `width` and then those of the last columns. */
static bool walks_by(int width, const od_device *device, const layout *l, const char **why) {
    const size_t c = (size_t)l->c;
    return od_variant_loops(device, 2 * cpu_chunk_rows(c) * (1 + c / (size_t)width + (c % 16 ? 3 : 0)), why);
}

static bool walks(const od_device *device, const void *shape, const char **why) {
    return walks_by(16, device, shape, why);
}

static bool walks_small(const od_device *device, const void *shape, const char **why) {
    return small(device, shape, why) && walks_by(4, device, shape, why);
}

od_columns od_columns_choose(const od_device *device, const char *operation, size_t rows, int c, const od_span *spans,
                             size_t span_count) {
    static const od_variant variants[] = {
        {"cpu_small", OD_FAMILY_CPU, walks_small, &columns_small},
        {"cpu", OD_FAMILY_CPU, walks, &columns_cpu},
        {"gpu_narrow", OD_FAMILY_GPU, narrow, &columns_gpu_narrow},
        {"gpu_float4", OD_FAMILY_GPU, aligned_by_4, &columns_gpu_4},
        {"gpu", OD_FAMILY_GPU, NULL, &columns_gpu},
        {"ref", OD_FAMILY_REF, NULL, &columns_ref},
    };
    layout l = {spans, span_count, c};
    size_t chosen = od_variant_choose(device, operation, variants, COUNT(variants), &l);
    od_columns columns = *(const od_columns *)variants[chosen].run;
    /* GPU: enough work-groups to fill it, few enough partial sums to add up quickly. Else 128 KiB, so that a second
     * pass over a chunk reads one core's cache. */
    bool gpu = variants[chosen].family == OD_FAMILY_GPU;
    columns.chunk_rows = gpu ? clamp(od_ceil_div(rows, 512), 128, 2048) : cpu_chunk_rows((size_t)c);
    columns.chunks = od_ceil_div(rows, columns.chunk_rows);
    return columns;
}

od_range od_columns_range(const od_columns *columns, int c, int groups) {
    size_t blocks = columns->columns ? od_ceil_div((size_t)c, columns->columns) : 1;
    return OD_RANGE3(columns->chunks * columns->items, blocks, (size_t)groups, columns->items, 1, 1);
}

od_range od_columns_finish_range(const od_columns *columns, int c) {
    return OD_RANGE3(columns->items, od_ceil_div((size_t)c, columns->finish_block), 1, columns->items, 1, 1);
}
