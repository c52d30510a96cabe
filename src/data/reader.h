/* Readers of data files, each for one format, over one bounded stream. */
#ifndef DATA_READER_H
#define DATA_READER_H

#include <stdbool.h>
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

/* CIFAR's binary records: label_bytes bytes, number `which` of which is the label (below `classes`), then R, G, B
 * planes of 32 x 32. Each file must hold exactly `records`. Appends to out (grown with realloc). */
od_status od_cifar_read(const char *path, int label_bytes, int which, int classes, int records, od_split *out);

/* Both fill a data set whose name, dir, classes and (folder) sides are set, through the store of prepared images. */
od_status od_stl10_read(od_dataset *dataset);
od_status od_folder_read(od_dataset *dataset);

void od_split_free(od_split *split);

/* ---- single images ---------------------------------------------------------------------------------------------- */

/* Decode a JPEG or PNG file into out (side, side, 3): its shorter side resized to `side`, its middle cut out. Not a row
 * more of the picture than one is held at a time, interlaced PNG apart. What the file claims is believed only as far as
 * its size allows; a picture that breaks off is an error. OD_ERR_UNSUPPORTED: this build lacks the decoder. */
od_status od_image_decode(const char *path, uint8_t *out, int side);
bool od_image_name(const char *name); /* by its ending */

/* The resizing itself, for rows as they come: torchvision's Resize(side) with antialias and CenterCrop(side), bilinear,
 * in float. */
typedef struct od_resizer od_resizer;
od_status od_resizer_create(od_resizer **out, int h, int w, int side);
void od_resizer_row(od_resizer *resizer, const uint8_t *row);    /* row (w, 3); from the top, each once */
void od_resizer_finish(const od_resizer *resizer, uint8_t *out); /* out (side, side, 3) */
void od_resizer_destroy(od_resizer *resizer);                    /* NULL is fine */

#endif
