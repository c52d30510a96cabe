/* A device's limits: cl/limits.cl explains the kernels, this grows the launches until their time can be trusted. */
#include "offdiag/ops/limits.h"

#include <stdio.h>

#include "base/clock.h"

enum {
    ROUNDS = 2048,         /* of a work-item: times the chains, within any driver's limit */
    REPEATS = 24,          /* short ones: the best is right on a machine that is busy otherwise */
    CPU_BYTES = 128 << 20, /* memory that a pass takes at least, unless the budget is short of it */
    GPU_BYTES = 512 << 20,
    CACHES = 4, /* times the caches that the device tells */
    LEAST_BYTES = 1 << 20,
};
#define LONG_ENOUGH 0.005 /* seconds of a launch: its overhead is below a hundredth */
#define MOST_BYTES  (4ull << 30)

/* How the kernels are cut. */
typedef struct limits_cut {
    int vector, chains, team, block; /* block: of a work-group, in vectors */
} limits_cut;

/* Chains in registers: 16 of AVX-512's 32 registers of 16 floats, 12 of 16 elsewhere; a GPU's vectors are scalars, or
 * pairs to those that have packed arithmetic. */
static limits_cut cut_of(const od_device_info *info, od_family shape) {
    const bool gpu = shape == OD_FAMILY_AUTO ? info->type != OD_DEVICE_CPU : shape == OD_FAMILY_GPU;
    if (gpu)
        return (limits_cut){4, 4, info->max_work_group < 256 ? 64 : 256, 1024};
    if (info->vector_width >= 16)
        return (limits_cut){16, 16, 1, 4096};
    return (limits_cut){info->vector_width >= 8 ? 8 : 4, 12, 1, 8192};
}

static od_status get_kernel(od_device *device, const limits_cut *cut, const char *name, od_kernel **kernel) {
    char options[64];
    snprintf(options, sizeof options, "-DV=%d -DCHAINS=%d -DTEAM=%d -DMULTIPLY_ADD=%s", cut->vector, cut->chains,
             cut->team, cut->team > 1 ? "mad" : "fma");
    return od_kernel_get(device, "limits", options, name, kernel);
}

/* *seconds: of one launch with these arguments. */
static od_status time_launch(od_device *device, od_kernel *kernel, od_range range, const od_arg *args, size_t count,
                             double *seconds) {
    od_status status = od_device_finish(device);
    const double start = od_now();
    if (!status)
        status = od_launch(kernel, range, args, count);
    if (!status)
        status = od_device_finish(device);
    *seconds = od_now() - start;
    return status;
}

static od_status measure_arithmetic(od_device *device, const limits_cut *cut, double *gflop_per_s) {
    const od_arg args[] = {OD_BUF(NULL), OD_F32(0.5f), OD_F32(0.5f), OD_F32(-1), OD_U32(ROUNDS)};
    const double flop = 2.0 * ROUNDS * cut->chains * cut->vector; /* of a work-item */
    size_t groups = 8 * (size_t)od_device_get_info(device)->compute_units;
    od_kernel *kernel;
    od_status status = get_kernel(device, cut, "multiply_adds", &kernel);
    *gflop_per_s = 0;
    for (int i = 0; i < REPEATS && !status;) {
        const size_t items = groups * (size_t)cut->team;
        double seconds = 0;
        status = time_launch(device, kernel, OD_RANGE1(items, (size_t)cut->team), args, sizeof args / sizeof *args,
                             &seconds);
        if (seconds < LONG_ENOUGH && groups < (1u << 24))
            groups *= 4; /* also after the first launch, which some drivers compile for */
        else
            i++;
        const double rate = flop * (double)items / seconds / 1e9;
        *gflop_per_s = rate > *gflop_per_s ? rate : *gflop_per_s;
    }
    return status;
}

/* Bytes of each of the two arrays. */
static uint64_t array_bytes(const od_device *device, const limits_cut *cut) {
    const od_device_info *info = od_device_get_info(device);
    const od_memory_use use = od_device_memory(device);
    uint64_t bytes = cut->team > 1 ? GPU_BYTES : CPU_BYTES;
    if (bytes < CACHES * info->cache_bytes)
        bytes = CACHES * info->cache_bytes;
    if (bytes > MOST_BYTES)
        bytes = MOST_BYTES;
    if (bytes > (use.budget - use.live) / 2)
        bytes = (use.budget - use.live) / 2;
    bytes = bytes / 2 < info->max_alloc_bytes ? bytes / 2 : info->max_alloc_bytes;
    return bytes < LEAST_BYTES ? LEAST_BYTES : bytes;
}

static od_status measure_memory(od_device *device, const limits_cut *cut, double *gb_per_s) {
    const uint64_t count = array_bytes(device, cut) / sizeof(float) / (uint64_t)cut->vector; /* vectors */
    const size_t elements = (size_t)count * (size_t)cut->vector, groups = (size_t)(count / (uint64_t)cut->block + 1);
    od_span x = OD_NO_SPAN, y = OD_NO_SPAN;
    od_kernel *kernel;
    *gb_per_s = 0;
    od_status status = get_kernel(device, cut, "memory_pass", &kernel);
    if (status || (status = od_span_create(device, elements, &x)) || (status = od_span_create(device, elements, &y)) ||
        (status = od_span_zero(x, elements)) || (status = od_span_zero(y, elements)))
        goto out;
    const od_arg args[] = {OD_BUF(y.buffer), OD_BUF(x.buffer), OD_F32(0.5f), OD_U64(count),
                           OD_U32((uint32_t)cut->block)};
    for (int i = 0; i < REPEATS && !status; i++) {
        double seconds = 0;
        status = time_launch(device, kernel, OD_RANGE1(groups * (size_t)cut->team, (size_t)cut->team), args,
                             sizeof args / sizeof *args, &seconds);
        const double rate = 3.0 * sizeof(float) * (double)elements / seconds / 1e9;
        *gb_per_s = rate > *gb_per_s ? rate : *gb_per_s;
    }
out:
    od_buffer_release(x.buffer);
    od_buffer_release(y.buffer);
    return status;
}

od_status od_limits_measure(od_device *device, od_family shape, od_limits *limits) {
    const limits_cut cut = cut_of(od_device_get_info(device), shape);
    od_status status = measure_arithmetic(device, &cut, &limits->gflop_per_s);
    return status ? status : measure_memory(device, &cut, &limits->gb_per_s);
}
