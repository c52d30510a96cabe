/* IDX files (MNIST and its relatives): a big-endian header, then bytes. */
#include <stdlib.h>

#include "data/reader.h"

enum { MAX_ITEMS = 100 * 1000 * 1000 };

static uint32_t big_endian(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Magic and the number of items. */
static od_status read_header(od_stream *stream, const char *path, uint32_t magic, const char *what, int *n) {
    uint8_t header[8];
    od_status status = od_stream_read(stream, header, sizeof(header));
    if (status != OD_OK)
        return status;
    if (big_endian(header) != magic)
        return od_fail(OD_ERR_FORMAT, "%s: expected magic 0x%08x (IDX %s), found 0x%08x", path, magic, what,
                       big_endian(header));
    uint32_t count = big_endian(header + 4);
    if (count == 0 || count > MAX_ITEMS)
        return od_fail(OD_ERR_FORMAT, "%s: expected 1 to %d %s, found a header that says %u", path, MAX_ITEMS, what,
                       count);
    *n = (int)count;
    return OD_OK;
}

static od_status read_images(const char *path, int h, int w, int *n, uint8_t **images) {
    od_stream *stream = NULL;
    uint8_t dims[8];
    od_status status = od_stream_open(path, &stream);
    if (status != OD_OK)
        return status;
    status = read_header(stream, path, 0x00000803, "images", n);
    if (status == OD_OK)
        status = od_stream_read(stream, dims, sizeof(dims));
    if (status == OD_OK && (big_endian(dims) != (uint32_t)h || big_endian(dims + 4) != (uint32_t)w))
        status = od_fail(OD_ERR_FORMAT, "%s: expected images of %d x %d, found a header that says %u x %u", path, h, w,
                         big_endian(dims), big_endian(dims + 4));
    if (status == OD_OK)
        status = od_stream_read_claimed(stream, (size_t)*n * (size_t)h * (size_t)w, images);
    if (status == OD_OK)
        status = od_stream_expect_end(stream);
    od_stream_close(stream);
    return status;
}

static od_status read_labels(const char *path, int classes, int *n, uint8_t **labels) {
    od_stream *stream = NULL;
    od_status status = od_stream_open(path, &stream);
    if (status != OD_OK)
        return status;
    status = read_header(stream, path, 0x00000801, "labels", n);
    if (status == OD_OK)
        status = od_stream_read_claimed(stream, (size_t)*n, labels);
    if (status == OD_OK)
        status = od_stream_expect_end(stream);
    for (int i = 0; status == OD_OK && i < *n; i++)
        if ((*labels)[i] >= classes)
            status = od_fail(OD_ERR_FORMAT, "%s: expected labels 0 to %d, found %d at item %d", path, classes - 1,
                             (*labels)[i], i);
    od_stream_close(stream);
    return status;
}

od_status od_idx_read(const char *images_path, const char *labels_path, int h, int w, int classes, od_split *out) {
    uint8_t *images = NULL, *bytes = NULL;
    int32_t *labels = NULL;
    int n = 0, n_labels = 0;
    *out = (od_split){0};
    od_status status = read_images(images_path, h, w, &n, &images);
    if (status == OD_OK)
        status = read_labels(labels_path, classes, &n_labels, &bytes);
    if (status != OD_OK)
        goto out;
    if (n_labels != n || n < 1) {
        status = od_fail(OD_ERR_FORMAT, "%s: expected %d labels, as many as images in %s, found %d", labels_path, n,
                         images_path, n_labels);
        goto out;
    }
    labels = malloc(sizeof(*labels) * (size_t)n);
    if (!labels) {
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for %d labels", labels_path, n);
        goto out;
    }
    for (int i = 0; i < n; i++)
        labels[i] = bytes[i];
    *out = (od_split){.n = n, .images = images, .labels = labels};
    images = NULL;
out:
    free(bytes);
    free(images);
    return status;
}
