/* NumPy's .npy format, version 1.0: little-endian arrays in C order, written by atomic replacement. */
#ifndef BASE_NPY_H
#define BASE_NPY_H

#include <stddef.h>
#include <stdint.h>

#include "offdiag/status.h"

enum { OD_NPY_MAX_RANK = 4 };

od_status od_npy_write_f32(const char *path, const float *data, int rank, const size_t *shape);
od_status od_npy_write_i32(const char *path, const int32_t *data, int rank, const size_t *shape);

#endif
