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
