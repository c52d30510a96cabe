/* offdiag bench conv: the convolutions of ResNet-18 (CIFAR stem, 32x32 images), each pass of each. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/options.h"
#include "cli/bench.h"
#include "offdiag/ops/conv.h"
#include "offdiag/ops/optim.h"
#include "ops/conv_impl.h"

typedef struct conv_args {
    int width, batch, runs, kernels, winograd;
    char device[256];
    bool cpu_time, json;
} conv_args;

static const char *const uses[] = {"auto", "never", "always", NULL}; /* od_conv_winograd_use */

#define T conv_args
static const od_option rows[] = {
    OD_OPT_INT(T, width, "width", 1, 1024, "channels of the first stage"),
    OD_OPT_INT(T, batch, "batch", 1, 65536, "images"),
    OD_OPT_INT(T, runs, "runs", 1, 1000, "timed runs of a pass, after one warm-up; the median counts"),
    OD_OPT_STRING(T, device, "device", "SPEC", "device (default: $OFFDIAG_DEVICE, then auto)"),
    OD_OPT_CHOICE(T, kernels, "kernels", od_family_names, "kernel family"),
    OD_OPT_CHOICE(T, winograd, "winograd", uses, "where Winograd's convolution may run (CPU family)"),
    OD_OPT_FLAG(T, cpu_time, "cpu-time",
                "processor time over the device's units, for machines that are busy otherwise"),
    OD_OPT_FLAG(T, json, "json", "one JSON document"),
};
#undef T

/* In units of the width, except for the stem's four input channels. */
static const struct {
    int size, in, out, kernel, stride;
} layers[] = {
    {32, 0, 1, 3, 1}, {32, 1, 1, 3, 1}, {32, 1, 2, 3, 2}, {32, 1, 2, 1, 2}, {16, 2, 2, 3, 1}, {16, 2, 4, 3, 2},
    {16, 2, 4, 1, 2}, {8, 4, 4, 3, 1},  {8, 4, 8, 3, 2},  {8, 4, 8, 1, 2},  {4, 8, 8, 3, 1},
};
enum { LAYERS = sizeof layers / sizeof *layers };

static const struct {
    const char *op;
    unsigned flag;
} passes[] = {
    {"conv_forward", OD_CONV_FORWARD},
    {"conv_backward_data", OD_CONV_BACKWARD_DATA},
    {"conv_backward_weight", OD_CONV_BACKWARD_WEIGHT},
};
enum { PASSES = sizeof passes / sizeof *passes };

/* One layer's plan and tensors. */
typedef struct layer {
    od_conv_shape shape;
    od_conv *conv;
    od_span x, y, w, dx, dy, dw;
} layer;

static void release_layer(layer *l) {
    od_conv_destroy(l->conv);
    const od_span spans[] = {l->x, l->y, l->w, l->dx, l->dy, l->dw};
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++)
        od_buffer_release(spans[i].buffer);
    *l = (layer){0};
}

static od_status create_layer(od_device *device, layer *l, int index, const conv_args *a) {
    const int kernel = layers[index].kernel, in = layers[index].in ? layers[index].in * a->width : 4;
    l->shape = (od_conv_shape){.h = layers[index].size,
                               .w = layers[index].size,
                               .c_in = in,
                               .c_out = layers[index].out * a->width,
                               .kernel_h = kernel,
                               .kernel_w = kernel,
                               .stride = layers[index].stride,
                               .pad = kernel / 2};
    const od_conv_shape *s = &l->shape;
    const size_t nx = (size_t)a->batch * s->h * s->w * s->c_in, nw = (size_t)kernel * kernel * s->c_in * s->c_out;
    const size_t ny = (size_t)a->batch * od_conv_out_h(s) * od_conv_out_w(s) * s->c_out;
    const struct {
        od_span *span;
        size_t elements;
    } tensors[] = {{&l->x, nx}, {&l->y, ny}, {&l->w, nw}, {&l->dx, nx}, {&l->dy, ny}, {&l->dw, nw}};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        od_status status = od_span_create(device, tensors[i].elements, tensors[i].span);
        if (!status)
            status = od_fill_normal(device, *tensors[i].span, tensors[i].elements, 1, 1, i);
        if (status)
            return status;
    }
    od_status status = od_conv_create(device, s, OD_CONV_ALL, &l->conv);
    return status ? status : od_conv_set_weights(l->conv, l->w);
}

static od_status run_pass(layer *l, unsigned pass, int n) {
    if (pass == OD_CONV_FORWARD)
        return od_conv_forward(l->conv, l->y, l->x, n);
    if (pass == OD_CONV_BACKWARD_DATA)
        return od_conv_backward_data(l->conv, l->dx, l->dy, n);
    return od_conv_backward_weight(l->conv, l->dw, l->x, l->dy, n, false);
}

/* Wall clock; or this process's processor time, shared out evenly over the units of a CPU device. */
static double now(const od_device *device, bool cpu_time) {
    return cpu_time ? od_cpu_now() / od_device_get_info(device)->compute_units : od_now();
}

/* seconds: the median of the runs. times (runs) is scratch. */
static od_status time_pass(od_device *device, layer *l, unsigned pass, const conv_args *a, double *times,
                           double *seconds) {
    for (int r = -1; r < a->runs; r++) {
        if (r == 0)
            od_device_profile_reset(device);
        const double start = now(device, a->cpu_time);
        od_status status = run_pass(l, pass, a->batch);
        if (status || (status = od_device_finish(device)))
            return status;
        if (r >= 0)
            times[r] = now(device, a->cpu_time) - start;
    }
    *seconds = od_bench_median(times, a->runs);
    return OD_OK;
}

static od_status bench_layer(od_device *device, layer *l, const conv_args *a, const od_limits *limits, double *times,
                             json_t *list) {
    const od_conv_shape *s = &l->shape;
    char shape[96];
    snprintf(shape, sizeof shape, "n=%d %dx%d c=%d,%d k=%dx%d s=%d", a->batch, s->h, s->w, s->c_in, s->c_out,
             s->kernel_h, s->kernel_w, s->stride);
    for (int i = 0; i < PASSES; i++) {
        double seconds = 0;
        od_status status = time_pass(device, l, passes[i].flag, a, times, &seconds);
        if (status)
            return status;
        const od_work done = od_device_work(device).work;
        const od_bench_row row = {.op = passes[i].op,
                                  .shape = shape,
                                  .variant = od_conv_variant(l->conv, passes[i].flag),
                                  .seconds = seconds,
                                  .flop = od_conv_flop(s, a->batch),
                                  .work = {done.flop / a->runs, done.bytes / a->runs}};
        if ((status = od_bench_add_row(list, !a->json, limits, &row)))
            return status;
    }
    return OD_OK;
}

static od_status run_bench(const conv_args *a, double *times, json_t *list) {
    od_device_options options = {.family = (od_family)a->kernels};
    od_device *device = NULL;
    od_limits limits;
    od_conv_winograd_mode = (od_conv_winograd_use)a->winograd;
    od_status status = od_bench_limits(a->device, !a->json, &limits);
    if (!status)
        status = od_device_open(a->device, &options, &device);
    for (int i = 0; i < LAYERS && !status; i++) {
        layer l = {0};
        status = create_layer(device, &l, i, a);
        if (!status)
            status = bench_layer(device, &l, a, &limits, times, list);
        release_layer(&l);
    }
    if (!status && a->json)
        status = od_bench_print_rows(
            json_pack("{s:s, s:i}", "device", od_device_get_info(device)->name, "batch", a->batch), &limits, list);
    od_device_close(device);
    return status;
}

od_status od_bench_conv(int argc, char **argv) {
    conv_args a = {.width = 64, .batch = 64, .runs = 9};
    od_options table = {.rows = rows, .count = sizeof rows / sizeof *rows, .target = &a};
    od_positionals none = {.max = 0, .usage = "", .about = "Time the convolutions of ResNet-18, each pass."};
    bool help = false;
    od_status status = od_options_parse(&table, 1, &none, argc, argv, &help);
    if (status || help)
        return status;
    double *times = calloc((size_t)a.runs, sizeof *times);
    json_t *list = json_array();
    status = times && list ? run_bench(&a, times, list) : od_fail(OD_ERR_MEMORY, "no memory for %d times", a.runs);
    json_decref(list);
    free(times);
    return status;
}
