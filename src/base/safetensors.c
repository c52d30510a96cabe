#include "base/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/grow.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are stored little-endian and copied as they are");

enum { HEADER_MAX = 100000000, LENGTH_BYTES = 8 };

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [OD_BOOL] = {"BOOL", 1},       [OD_U8] = {"U8", 1},   [OD_I8] = {"I8", 1},   [OD_F8_E5M2] = {"F8_E5M2", 1},
    [OD_F8_E4M3] = {"F8_E4M3", 1}, [OD_I16] = {"I16", 2}, [OD_U16] = {"U16", 2}, [OD_F16] = {"F16", 2},
    [OD_BF16] = {"BF16", 2},       [OD_I32] = {"I32", 4}, [OD_U32] = {"U32", 4}, [OD_F32] = {"F32", 4},
    [OD_F64] = {"F64", 8},         [OD_I64] = {"I64", 8}, [OD_U64] = {"U64", 8},
};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

const char *od_dtype_name(od_dtype dtype) {
    return dtypes[dtype].name;
}

size_t od_dtype_size(od_dtype dtype) {
    return dtypes[dtype].size;
}

static bool dtype_parse(const char *text, od_dtype *out) {
    for (int i = 0; i < DTYPES; i++)
        if (strcmp(text, dtypes[i].name) == 0) {
            *out = (od_dtype)i;
            return true;
        }
    return false;
}

/* Elements and bytes of a shape; false on overflow. */
static bool tensor_measure(od_tensor *t) {
    t->count = 1;
    for (int i = 0; i < t->rank; i++)
        if (__builtin_mul_overflow(t->count, t->shape[i], &t->count))
            return false;
    return !__builtin_mul_overflow(t->count, od_dtype_size(t->dtype), &t->bytes);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

typedef struct entry {
    od_tensor tensor; /* its name is owned by the header */
    uint64_t begin;   /* in the data section */
} entry;

struct od_safetensors {
    int fd;
    char *path;
    json_t *header;
    uint64_t data_start, data_bytes;
    entry *entries; /* by name, once checked */
    size_t count;
};

/* A name from an untrusted file, cut short and without control characters, so that a message stays one line. */
typedef struct printable {
    char text[84];
} printable;

static printable printable_of(const char *text) {
    printable p;
    size_t i = 0;
    for (; text[i] && i < sizeof p.text - 4; i++)
        p.text[i] = (char)((unsigned char)text[i] < ' ' || text[i] == 0x7f ? '?' : text[i]);
    memcpy(p.text + i, text[i] ? "..." : "", text[i] ? 4 : 1);
    return p;
}

static od_status read_exactly(const od_safetensors *f, void *data, size_t bytes, uint64_t offset) {
    char *to = data;
    while (bytes) {
        ssize_t got = pread(f->fd, to, bytes, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return od_fail(OD_ERR_IO, "%s: cannot read: %s", f->path, strerror(errno));
        if (got == 0)
            return od_fail(OD_ERR_FORMAT,
                           "%s: expected %zu more bytes at offset %" PRIu64 ", found the end of the file", f->path,
                           bytes, offset);
        to += got;
        bytes -= (size_t)got;
        offset += (uint64_t)got;
    }
    return OD_OK;
}

/* An offset or a dimension: a JSON integer, not negative. */
static bool json_size(const json_t *value, uint64_t *out) {
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static od_status parse_shape(const od_safetensors *f, const json_t *shape, od_tensor *t) {
    if (!json_is_array(shape) || json_array_size(shape) > OD_TENSOR_MAX_RANK)
        return od_fail(OD_ERR_FORMAT, "%s: tensor '%s': expected a shape of at most %d dimensions, found %s", f->path,
                       printable_of(t->name).text, OD_TENSOR_MAX_RANK, json_is_array(shape) ? "more" : "none");
    t->rank = (int)json_array_size(shape);
    for (int i = 0; i < t->rank; i++) {
        uint64_t extent;
        if (!json_size(json_array_get(shape, (size_t)i), &extent) || extent > SIZE_MAX)
            return od_fail(OD_ERR_FORMAT, "%s: tensor '%s': dimension %d is not a size", f->path,
                           printable_of(t->name).text, i);
        t->shape[i] = (size_t)extent;
    }
    return OD_OK;
}

/* One member of the header: {"dtype", "shape", "data_offsets"}, each checked against the others. */
static od_status parse_tensor(const od_safetensors *f, const char *name, const json_t *value, entry *e) {
    od_tensor *t = &e->tensor;
    uint64_t end = 0;
    *e = (entry){.tensor.name = name};
    const json_t *dtype = json_object_get(value, "dtype");
    const json_t *offsets = json_object_get(value, "data_offsets");
    if (!json_is_string(dtype) || !dtype_parse(json_string_value(dtype), &t->dtype))
        return od_fail(OD_ERR_FORMAT, "%s: tensor '%s': expected a dtype such as F32, found '%s'", f->path,
                       printable_of(name).text,
                       printable_of(json_is_string(dtype) ? json_string_value(dtype) : "no string").text);
    od_status status = parse_shape(f, json_object_get(value, "shape"), t);
    if (status)
        return status;
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_size(json_array_get(offsets, 0), &e->begin) ||
        !json_size(json_array_get(offsets, 1), &end) || end < e->begin || end > f->data_bytes)
        return od_fail(OD_ERR_FORMAT,
                       "%s: tensor '%s': expected data_offsets [begin, end] within %" PRIu64
                       " bytes of data, found [%" PRIu64 ", %" PRIu64 "]",
                       f->path, printable_of(name).text, f->data_bytes, e->begin, end);
    if (!tensor_measure(t))
        return od_fail(OD_ERR_FORMAT, "%s: tensor '%s': its shape overflows", f->path, printable_of(name).text);
    if (t->bytes != end - e->begin)
        return od_fail(OD_ERR_FORMAT, "%s: tensor '%s': expected %zu bytes for its dtype and shape, found %" PRIu64,
                       f->path, printable_of(name).text, t->bytes, end - e->begin);
    return OD_OK;
}

static od_status check_metadata(const od_safetensors *f, json_t *metadata) {
    if (!json_is_object(metadata))
        return od_fail(OD_ERR_FORMAT, "%s: expected __metadata__ to map strings to strings", f->path);
    for (void *i = json_object_iter(metadata); i; i = json_object_iter_next(metadata, i))
        if (!json_is_string(json_object_iter_value(i)))
            return od_fail(OD_ERR_FORMAT, "%s: __metadata__ '%s': expected a string", f->path,
                           printable_of(json_object_iter_key(i)).text);
    return OD_OK;
}

static int by_place(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->tensor.bytes > y->tensor.bytes) - (x->tensor.bytes < y->tensor.bytes); /* empty ones first */
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const entry *)a)->tensor.name, ((const entry *)b)->tensor.name);
}

/* Tensors follow each other without gap or overlap, from 0 to the end of the file. */
static od_status check_layout(const od_safetensors *f) {
    uint64_t at = 0;
    for (size_t i = 0; i < f->count; i++) {
        const entry *e = &f->entries[i];
        if (e->begin != at)
            return od_fail(OD_ERR_FORMAT, "%s: tensor '%s': expected to begin at %" PRIu64 ", found %" PRIu64 " (%s)",
                           f->path, printable_of(e->tensor.name).text, at, e->begin,
                           e->begin > at ? "a gap" : "an overlap");
        at += e->tensor.bytes; /* each end is within data_bytes: no overflow */
    }
    if (at != f->data_bytes)
        return od_fail(OD_ERR_FORMAT, "%s: expected %" PRIu64 " bytes of data, found %" PRIu64, f->path, at,
                       f->data_bytes);
    return OD_OK;
}

static od_status parse_header(od_safetensors *f, const char *text, size_t length) {
    json_error_t error;
    if (length == 0 || text[0] != '{')
        return od_fail(OD_ERR_FORMAT, "%s: expected a header that starts with '{': not a safetensors file", f->path);
    f->header = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!f->header) {
        if (json_error_code(&error) == json_error_duplicate_key)
            return od_fail(OD_ERR_FORMAT, "%s: expected each name once, found a duplicate before byte %d of the header",
                           f->path, error.position);
        return od_fail(OD_ERR_FORMAT, "%s: expected a JSON header, found an error at its byte %d", f->path,
                       error.position);
    }
    f->entries = calloc(json_object_size(f->header) + 1, sizeof *f->entries);
    if (!f->entries)
        return od_fail(OD_ERR_MEMORY, "%s: no memory for %zu tensors", f->path, json_object_size(f->header));
    for (void *i = json_object_iter(f->header); i; i = json_object_iter_next(f->header, i)) {
        const char *name = json_object_iter_key(i);
        json_t *value = json_object_iter_value(i);
        bool metadata = strcmp(name, "__metadata__") == 0;
        od_status status = metadata ? check_metadata(f, value) : parse_tensor(f, name, value, &f->entries[f->count]);
        if (status)
            return status;
        f->count += !metadata;
    }
    qsort(f->entries, f->count, sizeof *f->entries, by_place);
    od_status status = check_layout(f);
    if (status)
        return status;
    qsort(f->entries, f->count, sizeof *f->entries, by_name);
    return OD_OK;
}

od_status od_safetensors_open(const char *path, od_safetensors **out) {
    od_status status = OD_OK;
    char *text = NULL;
    struct stat info;
    unsigned char prefix[LENGTH_BYTES];
    uint64_t length = 0, size;
    *out = NULL;
    od_safetensors *f = calloc(1, sizeof *f);
    if (!f)
        return od_fail(OD_ERR_MEMORY, "%s: no memory", path);
    f->fd = -1;
    f->path = strdup(path);
    if (!f->path) {
        status = od_fail(OD_ERR_MEMORY, "%s: no memory", path);
        goto out;
    }
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not make us wait before it is refused */
    if (f->fd < 0 || fstat(f->fd, &info)) {
        status = od_fail(OD_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(info.st_mode)) {
        status = od_fail(OD_ERR_FORMAT, "%s: expected a regular file", path);
        goto out;
    }
    size = (uint64_t)info.st_size;
    if (size < LENGTH_BYTES) {
        status = od_fail(OD_ERR_FORMAT, "%s: expected at least %d bytes of safetensors, found %" PRIu64, path,
                         LENGTH_BYTES, size);
        goto out;
    }
    if ((status = read_exactly(f, prefix, sizeof prefix, 0)))
        goto out;
    for (int i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)prefix[i] << (8 * i);
    if (length > HEADER_MAX || length > size - LENGTH_BYTES) {
        status =
            od_fail(OD_ERR_FORMAT, "%s: expected a header of at most %" PRIu64 " bytes, found a length of %" PRIu64,
                    path, size - LENGTH_BYTES < HEADER_MAX ? size - LENGTH_BYTES : HEADER_MAX, length);
        goto out;
    }
    f->data_start = LENGTH_BYTES + length;
    f->data_bytes = size - f->data_start;
    text = malloc(length + 1);
    if (!text) {
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for a header of %" PRIu64 " bytes", path, length);
        goto out;
    }
    if (!(status = read_exactly(f, text, length, LENGTH_BYTES)))
        status = parse_header(f, text, length);
out:
    free(text);
    if (status)
        od_safetensors_close(f);
    else
        *out = f;
    return status;
}

void od_safetensors_close(od_safetensors *f) {
    if (!f)
        return;
    if (f->fd >= 0)
        close(f->fd);
    json_decref(f->header);
    free(f->entries);
    free(f->path);
    free(f);
}

size_t od_safetensors_count(const od_safetensors *f) {
    return f->count;
}

const od_tensor *od_safetensors_at(const od_safetensors *f, size_t index) {
    return index < f->count ? &f->entries[index].tensor : NULL;
}

const od_tensor *od_safetensors_find(const od_safetensors *f, const char *name) {
    entry key = {.tensor.name = name};
    const entry *e = f->count ? bsearch(&key, f->entries, f->count, sizeof *f->entries, by_name) : NULL;
    return e ? &e->tensor : NULL;
}

const char *od_safetensors_metadata(const od_safetensors *f, const char *key) {
    return json_string_value(json_object_get(json_object_get(f->header, "__metadata__"), key));
}

od_status od_safetensors_read(const od_safetensors *f, const od_tensor *t, void *data) {
    const entry *e = (const entry *)(const void *)t; /* its first member */
    return read_exactly(f, data, t->bytes, f->data_start + e->begin);
}

od_status od_safetensors_read_as(const od_safetensors *f, const char *name, od_dtype dtype, size_t count, void *data) {
    const od_tensor *t = od_safetensors_find(f, name);
    if (!t)
        return od_fail(OD_ERR_FORMAT, "%s: expected a tensor '%s', found none", f->path, name);
    if (t->dtype != dtype || t->count != count)
        return od_fail(OD_ERR_FORMAT, "%s: tensor '%s': expected %zu elements of %s, found %zu of %s", f->path, name,
                       count, od_dtype_name(dtype), t->count, od_dtype_name(t->dtype));
    return od_safetensors_read(f, t, data);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

typedef struct pending {
    od_tensor tensor; /* its name is owned */
    const void *data;
} pending;

struct od_safetensors_writer {
    pending *rows;
    size_t count, capacity;
    json_t *metadata;
};

od_status od_safetensors_writer_create(od_safetensors_writer **out) {
    od_safetensors_writer *w = calloc(1, sizeof *w);
    *out = NULL;
    if (!w || !(w->metadata = json_object())) {
        free(w);
        return od_fail(OD_ERR_MEMORY, "no memory for a safetensors writer");
    }
    *out = w;
    return OD_OK;
}

void od_safetensors_writer_destroy(od_safetensors_writer *w) {
    if (!w)
        return;
    for (size_t i = 0; i < w->count; i++)
        free((char *)w->rows[i].tensor.name);
    free(w->rows);
    json_decref(w->metadata);
    free(w);
}

od_status od_safetensors_add(od_safetensors_writer *w, const char *name, od_dtype dtype, int rank, const size_t *shape,
                             const void *data) {
    pending p = {.tensor = {.dtype = dtype, .rank = rank}, .data = data};
    if (rank < 0 || rank > OD_TENSOR_MAX_RANK || strcmp(name, "__metadata__") == 0)
        return od_fail(OD_ERR_ARGUMENT, "tensor '%s' of rank %d cannot be stored", name, rank);
    if (rank)
        memcpy(p.tensor.shape, shape, (size_t)rank * sizeof *shape);
    if (!tensor_measure(&p.tensor))
        return od_fail(OD_ERR_ARGUMENT, "tensor '%s': its shape overflows", name);
    for (size_t i = 0; i < w->count; i++)
        if (strcmp(w->rows[i].tensor.name, name) == 0)
            return od_fail(OD_ERR_ARGUMENT, "tensor '%s' was added twice", name);
    pending *rows = od_grow(w->rows, w->count, &w->capacity, sizeof *rows);
    if (!rows)
        return od_fail(OD_ERR_MEMORY, "no memory for more than %zu tensors", w->count);
    w->rows = rows;
    if (!(p.tensor.name = strdup(name)))
        return od_fail(OD_ERR_MEMORY, "no memory for the name '%s'", name);
    w->rows[w->count++] = p;
    return OD_OK;
}

od_status od_safetensors_add_metadata(od_safetensors_writer *w, const char *key, const char *value) {
    if (json_object_set_new(w->metadata, key, json_string(value)))
        return od_fail(OD_ERR_ARGUMENT, "metadata '%s' is not valid UTF-8", key);
    return OD_OK;
}

/* By type, the largest first as the enumeration lists them: every tensor is aligned. Then by name. */
static int by_alignment(const void *a, const void *b) {
    const od_tensor *x = &((const pending *)a)->tensor, *y = &((const pending *)b)->tensor;
    if (x->dtype != y->dtype)
        return x->dtype > y->dtype ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The JSON header of tensors in this order, or NULL; free it. *bytes: of the data section. */
static char *header_text(const od_safetensors_writer *w, const pending *rows, size_t *bytes) {
    json_t *header = json_object();
    char *text = NULL;
    *bytes = 0;
    if (json_object_size(w->metadata) && json_object_set(header, "__metadata__", w->metadata))
        goto out;
    for (size_t i = 0; i < w->count; i++) {
        const od_tensor *t = &rows[i].tensor;
        json_t *shape = json_array();
        for (int k = 0; k < t->rank; k++)
            json_array_append_new(shape, json_integer((json_int_t)t->shape[k]));
        size_t begin = *bytes;
        if (__builtin_add_overflow(begin, t->bytes, bytes)) {
            json_decref(shape);
            goto out;
        }
        if (json_object_set_new(header, t->name,
                                json_pack("{s:s, s:o, s:[I, I]}", "dtype", od_dtype_name(t->dtype), "shape", shape,
                                          "data_offsets", (json_int_t)begin, (json_int_t)*bytes)))
            goto out;
    }
    text = json_dumps(header, JSON_COMPACT);
out:
    json_decref(header);
    return text;
}

od_status od_safetensors_write(const od_safetensors_writer *w, const char *path) {
    od_status status = OD_OK;
    size_t bytes = 0;
    uint64_t length = 0, padded = 0;
    char *text = NULL;
    pending *rows = malloc((w->count + 1) * sizeof *rows);
    od_part *parts = malloc((w->count + 3) * sizeof *parts);
    if (!rows || !parts) {
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for %zu tensors", path, w->count);
        goto out;
    }
    if (w->count)
        memcpy(rows, w->rows, w->count * sizeof *rows);
    qsort(rows, w->count, sizeof *rows, by_alignment);
    text = header_text(w, rows, &bytes);
    if (!text) {
        status = od_fail(OD_ERR_ARGUMENT, "%s: cannot make a header of %zu tensors", path, w->count);
        goto out;
    }
    length = strlen(text);
    padded = (length + 7) / 8 * 8;
    if (padded > HEADER_MAX) {
        status = od_fail(OD_ERR_ARGUMENT, "%s: a header of %" PRIu64 " bytes passes the format's limit of %d", path,
                         padded, HEADER_MAX);
        goto out;
    }
    parts[0] = (od_part){&padded, LENGTH_BYTES};
    parts[1] = (od_part){text, length};
    parts[2] = (od_part){"       ", padded - length};
    for (size_t i = 0; i < w->count; i++)
        parts[3 + i] = (od_part){rows[i].data, rows[i].tensor.bytes};
    status = od_file_write_atomic_parts(path, parts, w->count + 3);
out:
    free(rows);
    free(parts);
    free(text);
    return status;
}
