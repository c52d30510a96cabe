/* Building a parameter table. */
#ifndef MODEL_PARAMS_H
#define MODEL_PARAMS_H

#include "offdiag/model.h"

/* Append a tensor; *offset is its place in the arena. Names are made as prefix + suffix. */
od_status od_param_add_conv(od_param_table *table, const char *prefix, const char *suffix, int kernel, int in,
                            int in_stored, int out, size_t *offset);
od_status od_param_add_linear(od_param_table *table, const char *prefix, const char *suffix, int in, int out,
                              size_t *offset);
od_status od_param_add_vector(od_param_table *table, const char *prefix, const char *suffix, int c, size_t *offset);

#endif
