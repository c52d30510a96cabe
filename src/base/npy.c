#include "base/npy.h"

#include <stdio.h>
#include <string.h>

#include "base/file.h"

/* Magic, version, header length, then a Python dictionary padded with spaces so that the data starts at a multiple of
 * 64. Returns the length in bytes. */
static size_t write_header(char out[256], const char *type, int rank, const size_t *shape) {
    char dims[128] = "";
    size_t used = 0;
    for (int i = 0; i < rank; i++)
        used += (size_t)snprintf(dims + used, sizeof dims - used, "%zu,%s", shape[i], i + 1 < rank ? " " : "");
    int text = snprintf(out + 10, 246, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", type, dims);
    size_t total = (10 + (size_t)text + 1 + 63) / 64 * 64;
    memset(out + 10 + text, ' ', total - 10 - (size_t)text);
    out[total - 1] = '\n';
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (char)((total - 10) & 0xff);
    out[9] = (char)((total - 10) >> 8);
    return total;
}

static od_status write_array(const char *path, const char *type, const void *data, int rank, const size_t *shape) {
    char header[256];
    size_t bytes = 4;
    if (rank < 1 || rank > OD_NPY_MAX_RANK)
        return od_fail(OD_ERR_ARGUMENT, "%s: an array of rank %d, 1 to %d can be written", path, rank, OD_NPY_MAX_RANK);
    for (int i = 0; i < rank; i++)
        bytes *= shape[i];
    od_part parts[] = {{header, write_header(header, type, rank, shape)}, {data, bytes}};
    return od_file_write_atomic_parts(path, parts, 2);
}

od_status od_npy_write_f32(const char *path, const float *data, int rank, const size_t *shape) {
    return write_array(path, "<f4", data, rank, shape);
}

od_status od_npy_write_i32(const char *path, const int32_t *data, int rank, const size_t *shape) {
    return write_array(path, "<i4", data, rank, shape);
}
