/* TensorBoard event files: TFRecords of Event messages, in a run's directory.
 *
 * A record is its length (8 bytes), the masked CRC-32C of those bytes, the data, and the masked CRC-32C of the data,
 * all little-endian. Without protobuf-c and libpng the file is not written: od_tensorboard_open says so. */
#ifndef TRAIN_TENSORBOARD_H
#define TRAIN_TENSORBOARD_H

#include <stddef.h>
#include <stdint.h>

#include "offdiag/status.h"

typedef struct od_tensorboard od_tensorboard;

/* A new event file in `dir`, for what comes after `step`. Earlier files of ours there lose what they hold past `step`,
 * and a tail that a crash cut off; with step 0 they go. OD_ERR_UNSUPPORTED in a build without the libraries. */
od_status od_tensorboard_open(od_tensorboard **out, const char *dir, uint64_t step);
od_status od_tensorboard_flush(od_tensorboard *tb);
void od_tensorboard_close(od_tensorboard *tb); /* NULL is fine */

typedef struct od_scalar {
    const char *tag;
    double value; /* one that is not finite is left out */
} od_scalar;
/* Steps must not go down from one call to the next. */
od_status od_tensorboard_scalars(od_tensorboard *tb, uint64_t step, const od_scalar *scalars, size_t count);
od_status od_tensorboard_histogram(od_tensorboard *tb, uint64_t step, const char *tag, const float *values,
                                   size_t count);
/* rgb (height, width, 3), written as PNG. */
od_status od_tensorboard_image(od_tensorboard *tb, uint64_t step, const char *tag, const uint8_t *rgb, int width,
                               int height);

#endif
