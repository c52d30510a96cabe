/* safetensors files: named tensors and string metadata; checkpoints, exports and golden values are kept in them.
 *
 * The reader trusts nothing: lengths, JSON, shapes and offsets are checked against each other and against the file's
 * real size before any of them is used, and a tensor's bytes are read from the file only when asked for, into the
 * caller's memory. The writer orders tensors as the reference writer does (alignment descending, then name). */
#ifndef BASE_SAFETENSORS_H
#define BASE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "offdiag/status.h"

/* In the order of the reference implementation, which is that of their sizes. */
typedef enum od_dtype {
    OD_BOOL,
    OD_U8,
    OD_I8,
    OD_F8_E5M2,
    OD_F8_E4M3,
    OD_I16,
    OD_U16,
    OD_F16,
    OD_BF16,
    OD_I32,
    OD_U32,
    OD_F32,
    OD_F64,
    OD_I64,
    OD_U64,
} od_dtype;

const char *od_dtype_name(od_dtype dtype); /* "F32" */
size_t od_dtype_size(od_dtype dtype);      /* bytes of one element */

#define OD_TENSOR_MAX_RANK 8

typedef struct od_tensor {
    const char *name;
    od_dtype dtype;
    int rank; /* 0: a scalar, one element */
    size_t shape[OD_TENSOR_MAX_RANK];
    size_t count, bytes;
} od_tensor;

/* ---- reading ---------------------------------------------------------------------------------------------------- */

typedef struct od_safetensors od_safetensors;

/* Open and check. A failure's message is one line: the file, what was expected, what was found. */
od_status od_safetensors_open(const char *path, od_safetensors **out);
void od_safetensors_close(od_safetensors *file); /* NULL is fine */

size_t od_safetensors_count(const od_safetensors *file);
const od_tensor *od_safetensors_at(const od_safetensors *file, size_t index);       /* in the order of their names */
const od_tensor *od_safetensors_find(const od_safetensors *file, const char *name); /* NULL: none */
const char *od_safetensors_metadata(const od_safetensors *file, const char *key);   /* NULL: none */

/* All of a tensor's bytes into `data`, which holds tensor->bytes (never more than the file's size). */
od_status od_safetensors_read(const od_safetensors *file, const od_tensor *tensor, void *data);
/* The tensor `name`, which must be there with this type and number of elements, into `data`. */
od_status od_safetensors_read_as(const od_safetensors *file, const char *name, od_dtype dtype, size_t count,
                                 void *data);

/* ---- writing ---------------------------------------------------------------------------------------------------- */

typedef struct od_safetensors_writer od_safetensors_writer;

od_status od_safetensors_writer_create(od_safetensors_writer **out);
void od_safetensors_writer_destroy(od_safetensors_writer *writer); /* NULL is fine */

/* `data` (the product of shape[0..rank-1] elements) is borrowed until od_safetensors_write; name and shape are copied.
 */
od_status od_safetensors_add(od_safetensors_writer *writer, const char *name, od_dtype dtype, int rank,
                             const size_t *shape, const void *data);
od_status od_safetensors_add_metadata(od_safetensors_writer *writer, const char *key, const char *value);
/* Write `path` by atomic replacement: a reader finds the old file or the whole new one. */
od_status od_safetensors_write(const od_safetensors_writer *writer, const char *path);

#endif
