/* What the variants of od_gemm share. */
#ifndef OPS_GEMM_IMPL_H
#define OPS_GEMM_IMPL_H

#include "device/tuning.h"
#include "offdiag/ops/gemm.h"

/* One product, checked: sizes positive, leading dimensions filled in, every span inside its buffer. */
typedef struct od_gemm_call {
    od_gemm_shape shape;
    od_span c, a, b;
    float alpha, beta;
} od_gemm_call;

typedef od_status (*od_gemm_fn)(od_device *device, const od_gemm_call *call);

/* For profiles: a product whose result is C, or the parts of so many slices of k. */
od_work od_gemm_work(const od_gemm_call *call, int slices);

od_status od_gemm_ref(od_device *device, const od_gemm_call *call);
od_status od_gemm_cpu(od_device *device, const od_gemm_call *call);
od_status od_gemm_gpu(od_device *device, const od_gemm_call *call);

/* Where the driver limits a work-item's loop rounds, od_gemm hands over as much of k as leaves so many for each step.
 */
enum { OD_GEMM_LOOPS = 64 };

/* A product cut along k into `slices`: where each writes its part (slices, m, n), to be summed in a fixed order. One
 * slice writes C itself. */
typedef struct od_gemm_slices {
    int count, slice_k;
    od_span out; /* C, or the parts */
    size_t ldc, stride;
    float alpha, beta; /* for the slices' own launch */
    od_buffer *parts;
} od_gemm_slices;

/* Cut into at most `wanted` slices, whole multiples of `granule` in length, within a bounded workspace. */
od_status od_gemm_slices_begin(od_device *device, const od_gemm_call *call, int wanted, int granule,
                               od_gemm_slices *slices);
/* Sum the parts into C (nothing for one slice) and release them. status: how the slices' launch ended; if it failed,
 * they are released only. */
od_status od_gemm_slices_end(od_device *device, const od_gemm_call *call, od_gemm_slices *slices, od_status status);

/* *kernel for the parameters v; NULL where the device can't run it. */
typedef od_status (*od_gemm_build)(od_device *device, const od_gemm_shape *shape, const int *v, od_kernel **kernel);
/* The kernel of what a tuning row says, else of `defaults` (table->count). v: the parameters it has. */
od_status od_gemm_tuned(od_device *device, const od_tuning_table *table, const od_gemm_shape *shape,
                        const int *defaults, od_gemm_build build, int *v, od_kernel **kernel);

/* gemm_clblast.c. check: once for each device, a small product against `ref`; the result is remembered. refusal: why
 * CLBlast must not run on this device, or NULL. */
void od_gemm_clblast_check(od_device *device);
const char *od_gemm_clblast_refusal(const od_device *device);
od_status od_gemm_clblast(od_device *device, const od_gemm_call *call);

#endif
