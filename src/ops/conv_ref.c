/* The variant for any device: plain kernels that read the weights in place (cl/conv_ref.cl). */
#include <stdlib.h>

#include "ops/conv_impl.h"

typedef struct ref_conv {
    od_device *device;
    od_conv_shape shape;
    unsigned pass;
    od_kernel *main, *sum;
} ref_conv;

enum { MAX_CHUNKS = 16, MIN_CHUNK = 64 }; /* of pixels, in backward by weights */

static od_status ref_create(od_device *device, const od_conv_shape *shape, unsigned pass, void **state) {
    const char *name = pass == OD_CONV_FORWARD         ? "conv_ref_forward"
                       : pass == OD_CONV_BACKWARD_DATA ? "conv_ref_backward_data"
                                                       : "conv_ref_backward_weight";
    const uint64_t window = (uint64_t)shape->kernel_h * shape->kernel_w, limit = od_device_loop_limit(device);
    const int summed = pass == OD_CONV_FORWARD ? shape->c_in : shape->c_out;
    if (limit && pass != OD_CONV_BACKWARD_WEIGHT && window * (summed + 2) > limit)
        return od_fail(OD_ERR_UNSUPPORTED, "convolution: a sum over %dx%d taps of %d channels is too long for %s",
                       shape->kernel_h, shape->kernel_w, summed, od_device_get_info(device)->name);
    ref_conv *c = calloc(1, sizeof *c);
    if (!c)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a plan");
    *c = (ref_conv){.device = device, .shape = *shape, .pass = pass};
    od_status status = od_kernel_get(device, "conv_ref", "", name, &c->main);
    if (!status)
        status = od_kernel_get(device, "conv_ref", "", "conv_sum_chunks", &c->sum);
    if (status) {
        free(c);
        c = NULL;
    }
    *state = c;
    return status;
}

#define DIMS_ARGS(s)                                                                                                   \
    OD_I32((s)->h), OD_I32((s)->w), OD_I32((s)->c_in), OD_I32(od_conv_out_h(s)), OD_I32(od_conv_out_w(s)),             \
        OD_I32((s)->c_out), OD_I32((s)->kernel_h), OD_I32((s)->kernel_w), OD_I32((s)->stride), OD_I32((s)->pad)

/* Channels along the first dimension: neighbours read neighbouring memory. */
static od_range channel_range(int channels, size_t rows, size_t chunks) {
    size_t local = channels >= 64 ? 64 : channels >= 16 ? 16 : 4;
    return OD_RANGE3((size_t)channels, rows, chunks, local, 64 / local, 1);
}

static od_status run_weight(ref_conv *c, const od_conv_args *args) {
    const od_conv_shape *s = &c->shape;
    uint64_t pixels = (uint64_t)args->n * od_conv_out_h(s) * od_conv_out_w(s);
    size_t rows = (size_t)s->kernel_h * s->kernel_w * s->c_in, count = rows * s->c_out;
    uint64_t chunk = (pixels + MAX_CHUNKS - 1) / MAX_CHUNKS;
    chunk = chunk < MIN_CHUNK ? MIN_CHUNK : chunk;
    const uint64_t limit = od_device_loop_limit(c->device);
    chunk = limit && chunk > limit ? limit : chunk;
    int chunks = (int)((pixels + chunk - 1) / chunk);
    od_span part;
    od_status status = od_span_borrow(c->device, count * chunks, &part);
    if (status)
        return status;
    const od_range range = od_conv_work(channel_range(s->c_out, rows, chunks), s, args->n, od_conv_flop(s, args->n),
                                        (double)count * chunks);
    status = OD_LAUNCH(c->main, range, OD_BUF(part.buffer), OD_SPAN(args->in), OD_SPAN(args->grad), OD_I32(args->n),
                       OD_U64(chunk), DIMS_ARGS(s));
    if (!status)
        status = OD_LAUNCH(c->sum, od_conv_sum_work(OD_RANGE1(count, 64), (double)count, chunks), OD_SPAN(args->out),
                           OD_BUF(part.buffer), OD_U64(count), OD_I32(chunks), OD_I32(args->accumulate));
    od_buffer_release(part.buffer);
    return status;
}

static od_status ref_run(void *state, const od_conv_args *args) {
    ref_conv *c = state;
    const od_conv_shape *s = &c->shape;
    if (c->pass == OD_CONV_BACKWARD_WEIGHT)
        return run_weight(c, args);
    bool back = c->pass == OD_CONV_BACKWARD_DATA;
    size_t pixels = (size_t)args->n * (back ? (size_t)s->h * s->w : (size_t)od_conv_out_h(s) * od_conv_out_w(s));
    const od_range range = od_conv_work(channel_range(back ? s->c_in : s->c_out, pixels, 1), s, args->n,
                                        od_conv_flop(s, args->n), od_conv_weights(s));
    return OD_LAUNCH(c->main, range, OD_SPAN(args->out), OD_SPAN(args->in), OD_SPAN(args->weights), OD_I32(args->n),
                     DIMS_ARGS(s));
}

const od_conv_impl od_conv_ref = {ref_create, free, NULL, NULL, ref_run, false};
