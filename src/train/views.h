/* From host images to views on the device. */
#ifndef TRAIN_VIEWS_H
#define TRAIN_VIEWS_H

#include "offdiag/data.h"
#include "offdiag/device.h"
#include "offdiag/ops/augment.h"

typedef struct od_views {
    od_device *device;
    od_augment_policy policies[2]; /* of view 1 and view 2 */
    uint64_t seed;
    int h, w, c, size;       /* images (h, w, c) uint8 -> views (size, size, 4) */
    int capacity;            /* images that fit the buffers */
    od_buffer *images, *ids; /* (capacity, h, w, c) uint8, (capacity) uint32 */
    od_span x;               /* (2 * micro, size, size, 4) */
    int micro;
    int made; /* images whose views x holds */
} od_views;

/* capacity: images of a whole batch; micro: images whose two views x holds. */
od_status od_views_create(od_views *v, od_device *device, const od_dataset *dataset,
                          const od_augment_policy policies[2], int size, int capacity, int micro, uint64_t seed);
void od_views_destroy(od_views *v);

od_status od_views_upload(od_views *v, const od_batch *batch);
/* x = both views of images first .. first+n-1 of the uploaded batch: rows 0..n-1 and n..2n-1. */
od_status od_views_make(od_views *v, int first, int n, uint32_t epoch);
/* x = images first .. first+n-1 of `split`, not augmented; n <= 2 micro and n <= capacity. */
od_status od_views_plain(od_views *v, const od_split *split, int first, int n);

#endif
