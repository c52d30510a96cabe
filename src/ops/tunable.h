/* The parameter tables of all variants that can be tuned; each is defined beside its variant. */
#ifndef OPS_TUNABLE_H
#define OPS_TUNABLE_H

#include "device/tuning.h"
#include "offdiag/ops/conv.h"
#include "offdiag/ops/gemm.h"

extern const od_tuning_table od_gemm_cpu_table, od_gemm_gpu_table, od_gemm_choice_table;
extern const od_tuning_table od_clblast_gemm_table, od_clblast_direct_table, od_clblast_routine_table;
extern const od_tuning_table od_conv_cpu_table, od_conv_cpu_weight_table;
extern const od_tuning_table od_conv_winograd_table, od_conv_winograd_weight_table;
extern const od_tuning_table od_conv_gpu_table, od_conv_gpu_weight_table, od_conv_gpu_choice_table;
extern const od_tuning_table od_conv_gpu_winograd_table, od_conv_gpu_winograd_weight_table;
extern const od_tuning_table od_conv_gpu_transforms_table;

/* All of them; ends with NULL. */
extern const od_tuning_table *const od_tuning_tables[];
const od_tuning_table *od_tuning_table_named(const char *variant); /* NULL: there is none */

/* "m256 n4096 k1024 nt": sizes rounded up to 16, 64, 256, 1024 or 4096, and which operands are stored transposed. */
void od_gemm_class(char out[64], const od_gemm_shape *shape);
#define OD_GEMM_CLASSES "m n k, each rounded up to 16, 64, 256, 1024 or 4096; n or t for A and B as stored"

/* "forward k3s2 c128 m16 n64": window and stride; the larger channel count rounded up to a power of two, 4 to 2048; the
 * output's longer side to one of 2 to 256; images to a power of four, 1 to 1024. n 0: any number of images. */
void od_conv_class(char out[64], unsigned pass, const od_conv_shape *shape, int n);
#define OD_CONV_PLAN_CLASSES                                                                                           \
    "pass, window and stride, the larger channel count and the output's longer side, each rounded up to a power of "   \
    "two"
#define OD_CONV_CLASSES OD_CONV_PLAN_CLASSES ", images to a power of four"

#endif
