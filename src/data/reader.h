/* Readers of data files, each for one format, over one bounded stream. */
#ifndef DATA_READER_H
#define DATA_READER_H

#include <stdint.h>

#include "offdiag/data.h"

/* A file read once from the front; gzip is undone as it is read. */
typedef struct od_stream od_stream;
od_status od_stream_open(const char *path, od_stream **out);
void od_stream_close(od_stream *stream); /* NULL is fine */

/* The size of the whole, for messages: known before it is read to the end. */
void od_stream_expect_size(od_stream *stream, size_t bytes);

/* Exactly `bytes` more bytes into data; fewer: OD_ERR_FORMAT with the size expected and found. */
od_status od_stream_read(od_stream *stream, void *data, size_t bytes);
/* The same into memory that grows as the data arrives (*data is malloc'd): `bytes` is only claimed. */
od_status od_stream_read_claimed(od_stream *stream, size_t bytes, uint8_t **data);
/* The end must be here. Also checks gzip's check sum. */
od_status od_stream_expect_end(od_stream *stream);

/* IDX: n images (n, h, w) of exactly h x w, and their labels below `classes`; both malloc'd. */
od_status od_idx_read(const char *images_path, const char *labels_path, int h, int w, int classes, od_split *out);

/* CIFAR's binary records: label_bytes bytes, the last of which is the label (below `classes`), then R, G, B planes of
 * 32 x 32. Each file must hold exactly `records`. Appends to out (grown with realloc). */
od_status od_cifar_read(const char *path, int label_bytes, int classes, int records, od_split *out);

void od_split_free(od_split *split);

#endif
