#include "ops/tunable.h"

#include <stdio.h>
#include <string.h>

const od_tuning_table *const od_tuning_tables[] = {
    &od_gemm_cpu_table,
    &od_gemm_gpu_table,
    &od_clblast_gemm_table,
    &od_clblast_direct_table,
    &od_clblast_routine_table,
    &od_gemm_choice_table,
    &od_conv_cpu_table,
    &od_conv_cpu_weight_table,
    &od_conv_winograd_table,
    &od_conv_winograd_weight_table,
    &od_conv_gpu_table,
    &od_conv_gpu_weight_table,
    &od_conv_gpu_choice_table,
    &od_conv_gpu_winograd_table,
    &od_conv_gpu_winograd_weight_table,
    &od_conv_gpu_transforms_table,
    NULL,
};

const od_tuning_table *od_tuning_table_named(const char *variant) {
    for (const od_tuning_table *const *t = od_tuning_tables; *t; t++)
        if (strcmp((*t)->variant, variant) == 0)
            return *t;
    return NULL;
}

void od_gemm_class(char out[64], const od_gemm_shape *s) {
    (void)snprintf(out, 64, "m%d n%d k%d %c%c", od_tuning_class(s->m, 16, 4096, 4), od_tuning_class(s->n, 16, 4096, 4),
                   od_tuning_class(s->k, 16, 4096, 4), s->trans_a ? 't' : 'n', s->trans_b ? 't' : 'n');
}

void od_conv_class(char out[64], unsigned pass, const od_conv_shape *s, int n) {
    const int h = od_conv_out_h(s), w = od_conv_out_w(s), c = s->c_in > s->c_out ? s->c_in : s->c_out;
    const char *name = pass == OD_CONV_FORWARD ? "forward" : pass == OD_CONV_BACKWARD_DATA ? "data" : "weight";
    int at = snprintf(out, 64, "%s k%ds%d c%d m%d", name, s->kernel_h > s->kernel_w ? s->kernel_h : s->kernel_w,
                      s->stride, od_tuning_class(c, 4, 2048, 2), od_tuning_class(h > w ? h : w, 2, 256, 2));
    if (n > 0 && at > 0 && at < 64)
        (void)snprintf(out + at, 64 - (size_t)at, " n%d", od_tuning_class(n, 1, 1024, 4));
}
