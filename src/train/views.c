#include "train/views.h"

od_status od_views_create(od_views *v, od_device *device, const od_dataset *dataset,
                          const od_augment_policy policies[2], int size, int capacity, int micro, uint64_t seed) {
    od_status status = OD_OK;
    *v = (od_views){.device = device,
                    .policies = {policies[0], policies[1]},
                    .seed = seed,
                    .h = dataset->h,
                    .w = dataset->w,
                    .c = dataset->c,
                    .size = size,
                    .capacity = capacity,
                    .micro = micro};
    if ((status = od_buffer_create(device, (size_t)capacity * v->h * v->w * v->c, &v->images)) ||
        (status = od_buffer_create(device, (size_t)capacity * sizeof(uint32_t), &v->ids)) ||
        (status = od_span_create(device, (size_t)2 * micro * size * size * 4, &v->x)))
        return od_fail_in(status, "views of %d images of %dx%d: ", capacity, size, size);
    return OD_OK;
}

void od_views_destroy(od_views *v) {
    od_buffer_release(v->images);
    od_buffer_release(v->ids);
    od_buffer_release(v->x.buffer);
    *v = (od_views){0};
}

static size_t image_bytes(const od_views *v) {
    return (size_t)v->h * v->w * v->c;
}

od_status od_views_upload(od_views *v, const od_batch *batch) {
    if (batch->n > v->capacity)
        return od_fail(OD_ERR_ARGUMENT, "a batch of %d images for buffers of %d", batch->n, v->capacity);
    od_status status = od_buffer_write(v->images, 0, batch->images, batch->n * image_bytes(v));
    return status ? status : od_buffer_write(v->ids, 0, batch->ids, batch->n * sizeof *batch->ids);
}

od_status od_views_make(od_views *v, int first, int n, uint32_t epoch) {
    od_augment_shape shape = {.n = n, .h = v->h, .w = v->w, .c = v->c, .size = v->size};
    size_t view_size = (size_t)n * v->size * v->size * 4;
    od_status status = OD_OK;
    if (n > v->micro || first < 0 || first + n > v->capacity)
        return od_fail(OD_ERR_ARGUMENT, "views of images %d to %d for buffers of %d", first, first + n, v->micro);
    v->made = n;
    for (uint32_t view = 0; view < 2 && !status; view++)
        status = od_augment(v->device, &shape, &v->policies[view], od_span_at(v->x, view * view_size), v->images,
                            first * image_bytes(v), v->ids, first * sizeof(uint32_t), v->seed, epoch, view);
    return status;
}

od_status od_views_plain(od_views *v, const od_split *split, int first, int n) {
    od_augment_shape shape = {.n = n, .h = v->h, .w = v->w, .c = v->c, .size = v->size};
    if (n > 2 * v->micro || n > v->capacity || first < 0 || n > split->n - first)
        return od_fail(OD_ERR_ARGUMENT, "images %d to %d of %d for buffers of %d", first, first + n, split->n,
                       v->capacity);
    od_status status = od_buffer_write(v->images, 0, split->images + first * image_bytes(v), n * image_bytes(v));
    return status ? status : od_augment_none(v->device, &shape, &v->policies[0], v->x, v->images, 0);
}
