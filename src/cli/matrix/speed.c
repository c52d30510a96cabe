/* Time and GFLOP/s of a few shapes that training spends its time in. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "cli/bench.h"
#include "cli/matrix/run.h"
#include "offdiag/model.h"
#include "offdiag/ops/conv.h"
#include "offdiag/ops/gemm.h"
#include "offdiag/ops/optim.h"

enum { RUNS = 7 };
#define LONG_S 0.5 /* a run that takes longer is not repeated */

typedef struct timing {
    od_device *device;
    json_t *rows;
} timing;

static od_status add(timing *t, const char *op, const char *shape, const char *variant, double seconds, double flop) {
    json_t *row = json_pack("{s:s, s:s, s:s, s:f, s:f}", "op", op, "shape", shape, "variant", variant, "seconds",
                            seconds, "gflop_per_s", flop / seconds / 1e9);
    return row && json_array_append_new(t->rows, row) == 0 ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for JSON");
}

/* The median of a few runs, after one that builds what is needed. */
static od_status measure(timing *t, od_status (*run)(void *), void *what, double *seconds) {
    double times[RUNS];
    int count = 0;
    for (int i = -1; i < RUNS; i++) {
        const double start = od_now();
        od_status status = run(what);
        if (status || (status = od_device_finish(t->device)))
            return status;
        if (i >= 0)
            times[count++] = od_now() - start;
        if (count > 0 && times[count - 1] > LONG_S)
            break;
    }
    *seconds = od_bench_median(times, count);
    return OD_OK;
}

/* ---- convolution ------------------------------------------------------------------------------------------------- */

typedef struct conv_run {
    od_conv_shape shape;
    int n;
    unsigned pass;
    od_conv *conv;
    od_span x, y, w, dx, dy, dw;
} conv_run;

static od_status run_conv(void *what) {
    conv_run *r = what;
    if (r->pass == OD_CONV_FORWARD)
        return od_conv_forward(r->conv, r->y, r->x, r->n);
    if (r->pass == OD_CONV_BACKWARD_DATA)
        return od_conv_backward_data(r->conv, r->dx, r->dy, r->n);
    return od_conv_backward_weight(r->conv, r->dw, r->x, r->dy, r->n, false);
}

static od_status time_conv(timing *t, const od_conv_shape *s, int n) {
    static const struct {
        unsigned pass;
        const char *op;
    } passes[] = {{OD_CONV_FORWARD, "conv_forward"},
                  {OD_CONV_BACKWARD_DATA, "conv_backward_data"},
                  {OD_CONV_BACKWARD_WEIGHT, "conv_backward_weight"}};
    conv_run r = {.shape = *s, .n = n};
    const size_t nx = (size_t)n * (size_t)s->h * (size_t)s->w * (size_t)s->c_in;
    const size_t ny = (size_t)n * (size_t)od_conv_out_h(s) * (size_t)od_conv_out_w(s) * (size_t)s->c_out;
    const size_t nw = (size_t)s->kernel_h * (size_t)s->kernel_w * (size_t)s->c_in * (size_t)s->c_out;
    const struct {
        od_span *span;
        size_t elements;
    } tensors[] = {{&r.x, nx}, {&r.y, ny}, {&r.w, nw}, {&r.dx, nx}, {&r.dy, ny}, {&r.dw, nw}};
    enum { TENSORS = sizeof tensors / sizeof *tensors };
    char shape[96];
    (void)snprintf(shape, sizeof shape, "n=%d %dx%d c=%d,%d k=%dx%d s=%d", n, s->h, s->w, s->c_in, s->c_out,
                   s->kernel_h, s->kernel_w, s->stride);
    od_status status = OD_OK;
    for (size_t i = 0; i < TENSORS && !status; i++)
        if (!(status = od_span_create(t->device, tensors[i].elements, tensors[i].span)))
            status = od_fill_normal(t->device, *tensors[i].span, tensors[i].elements, 1, 1, i);
    if (!status && !(status = od_conv_create(t->device, s, OD_CONV_ALL, &r.conv)))
        status = od_conv_set_weights(r.conv, r.w);
    for (size_t p = 0; p < sizeof passes / sizeof *passes && !status; p++) {
        double seconds = 0;
        r.pass = passes[p].pass;
        if (!(status = measure(t, run_conv, &r, &seconds)))
            status = add(t, passes[p].op, shape, od_conv_variant(r.conv, r.pass), seconds, od_conv_flop(s, n));
    }
    od_conv_destroy(r.conv);
    for (size_t i = 0; i < TENSORS; i++)
        od_buffer_release(tensors[i].span->buffer);
    return status;
}

/* ---- matrix product ---------------------------------------------------------------------------------------------- */

typedef struct gemm_run {
    od_device *device;
    od_gemm_shape shape;
    od_span c, a, b;
} gemm_run;

static od_status run_gemm(void *what) {
    gemm_run *r = what;
    return od_gemm(r->device, &r->shape, r->c, r->a, r->b, 1, 0);
}

static od_status time_gemm(timing *t, int size) {
    gemm_run r = {.device = t->device, .shape = {.m = size, .n = size, .k = size}};
    const size_t elements = (size_t)size * (size_t)size;
    od_span *const spans[] = {&r.a, &r.b, &r.c};
    char shape[64];
    double seconds = 0;
    od_status status = OD_OK;
    (void)snprintf(shape, sizeof shape, "m=n=k=%d", size);
    for (size_t i = 0; i < 3 && !status; i++)
        if (!(status = od_span_create(t->device, elements, spans[i])))
            status = od_fill_normal(t->device, *spans[i], elements, 1, 1, i);
    if (!status && !(status = measure(t, run_gemm, &r, &seconds)))
        status = add(t, "gemm", shape, od_family_name(od_device_family(t->device)), seconds,
                     2.0 * size * size * (double)size);
    for (size_t i = 0; i < 3; i++)
        od_buffer_release(spans[i]->buffer);
    return status;
}

/* ---- a training step --------------------------------------------------------------------------------------------- */

typedef struct step_run {
    od_model *model;
    od_span x, loss;
    int batch;
} step_run;

static od_status run_step(void *what) {
    static const od_optim_rates rates = {.lr = 0.01f, .momentum = 0.9f, .head_lr = 0.01f};
    step_run *r = what;
    od_status status = od_model_step(r->model, r->loss, r->x, r->batch, 1, false);
    return status ? status : od_model_optimize(r->model, &rates);
}

static od_status time_step(timing *t, int width, int batch) {
    const od_model_config config = {.encoder = "resnet18",
                                    .width = width,
                                    .image_size = 32,
                                    .proj_hidden = 512,
                                    .proj_dim = 128,
                                    .head_hidden = 128,
                                    .head = OD_HEAD_OFFDIAG,
                                    .loss = OD_LOSS_COSINE,
                                    .seed = 1};
    const size_t elements = (size_t)2 * (size_t)batch * 32 * 32 * 4;
    step_run r = {.batch = batch};
    char shape[64];
    double seconds = 0;
    (void)snprintf(shape, sizeof shape, "resnet18 width %d, batch %d", width, batch);
    od_status status = od_model_create(t->device, &config, batch, &r.model);
    if (!status && !(status = od_span_create(t->device, 1, &r.loss)) &&
        !(status = od_span_create(t->device, elements, &r.x)) &&
        !(status = od_fill_normal(t->device, r.x, elements, 1, 1, 0)) &&
        !(status = measure(t, run_step, &r, &seconds))) {
        json_t *row =
            json_pack("{s:s, s:s, s:s, s:f, s:f}", "op", "step", "shape", shape, "variant",
                      od_family_name(od_device_family(t->device)), "seconds", seconds, "images_per_s", batch / seconds);
        if (!row || json_array_append_new(t->rows, row))
            status = od_fail(OD_ERR_MEMORY, "no memory for JSON");
    }
    od_model_destroy(r.model);
    od_buffer_release(r.loss.buffer);
    od_buffer_release(r.x.buffer);
    return status;
}

od_status od_matrix_speed(od_device *device, bool quick, json_t **out) {
    static const od_conv_shape shapes[] = {
        {32, 32, 64, 64, 3, 3, 1, 1}, {16, 16, 64, 128, 3, 3, 2, 1}, {8, 8, 256, 256, 3, 3, 1, 1}};
    timing t = {device, json_array()};
    od_status status = t.rows ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for JSON");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && !status && (i == 0 || !quick); i++)
        status = time_conv(&t, &shapes[i], quick ? 4 : 16);
    if (!status)
        status = time_gemm(&t, quick ? 256 : 512);
    if (!status && !quick)
        status = time_step(&t, 16, 32);
    if (status)
        json_decref(t.rows);
    *out = status ? NULL : t.rows;
    return status;
}
