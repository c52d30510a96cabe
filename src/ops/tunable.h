/* The parameter tables of all variants that can be tuned; each is defined beside its variant. */
#ifndef OPS_TUNABLE_H
#define OPS_TUNABLE_H

#include "device/tuning.h"
#include "offdiag/ops/gemm.h"

extern const od_tuning_table od_gemm_cpu_table, od_gemm_gpu_table, od_gemm_choice_table;
extern const od_tuning_table od_clblast_gemm_table, od_clblast_direct_table, od_clblast_routine_table;

/* All of them; ends with NULL. */
extern const od_tuning_table *const od_tuning_tables[];
const od_tuning_table *od_tuning_table_named(const char *variant); /* NULL: there is none */

/* "m256 n4096 k1024 nt": sizes rounded up to 16, 64, 256, 1024 or 4096, and which operands are stored transposed. */
void od_gemm_class(char out[64], const od_gemm_shape *shape);
#define OD_GEMM_CLASSES "m n k, each rounded up to 16, 64, 256, 1024 or 4096; n or t for A and B as stored"

#endif
