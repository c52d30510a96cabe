/* A pass of a convolution, and its result against double. A whole batch in double would take minutes, so: images in
 * double (forward and backward by data: those of the result; backward by weights: a gradient that is zero elsewhere),
 * and the whole result against that of the default parameters, which the tests check. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/tune/tune.h"
#include "offdiag/ops/optim.h"
#include "reference/conv_ref.h"

enum { CHECKED = 2 }; /* images, the first and the last */
static const double double_tolerance = 5e-5, float_tolerance = 1e-4;

typedef struct conv_problem {
    od_device *device;
    od_conv_shape shape;
    int n;
    unsigned pass;
    od_conv *conv;
    size_t nx, ny, nw, nout; /* of one image, of one image, of w, of the whole result */
    od_span x, w, y;         /* y: what is not the result is input */
    od_span sparse;          /* y, zero but for the checked images; backward by weights */
    float *host, *base;      /* (nout): the result; that of the default */
    double *ref;
} conv_problem;

static od_span *out_of(conv_problem *p) {
    return p->pass == OD_CONV_FORWARD ? &p->y : p->pass == OD_CONV_BACKWARD_DATA ? &p->x : &p->w;
}

static void conv_destroy(void *context) {
    conv_problem *p = context;
    od_conv_destroy(p->conv);
    const od_span spans[] = {p->x, p->w, p->y, p->sparse};
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++)
        od_buffer_release(spans[i].buffer);
    free(p->host);
    free(p->base);
    free(p->ref);
    free(p);
}

static od_status conv_prepare(void *context) {
    conv_problem *p = context;
    od_conv_destroy(p->conv);
    p->conv = NULL;
    od_status status = od_conv_create(p->device, &p->shape, p->pass, &p->conv);
    return status || p->pass == OD_CONV_BACKWARD_WEIGHT ? status : od_conv_set_weights(p->conv, p->w);
}

static od_status run_on(conv_problem *p, od_span dy) {
    od_status status = p->pass == OD_CONV_FORWARD ? od_conv_forward(p->conv, p->y, p->x, p->n)
                       : p->pass == OD_CONV_BACKWARD_DATA
                           ? od_conv_backward_data(p->conv, p->x, p->y, p->n)
                           : od_conv_backward_weight(p->conv, p->w, p->x, dy, p->n, false);
    return status ? status : od_device_finish(p->device);
}

static od_status conv_run(void *context) {
    conv_problem *p = context;
    return run_on(p, p->y);
}

/* The result into host, from memory that was spoiled first. */
static od_status fresh_result(conv_problem *p, od_span dy) {
    const od_span out = *out_of(p);
    od_status status = od_buffer_fill(out.buffer, 0, p->nout * sizeof(float), 0x7fc00000u);
    if (!status && !(status = run_on(p, dy)))
        status = od_span_read(out, p->host, p->nout);
    return status;
}

static int checked_image(const conv_problem *p, int i) {
    return i == 0 ? 0 : p->n - 1;
}

/* ref: the checked images, or the sum over them. */
static od_status make_reference(conv_problem *p) {
    const size_t nin = p->pass == OD_CONV_BACKWARD_DATA ? p->ny : p->nx, each = p->nout / (size_t)p->n;
    const od_span from = p->pass == OD_CONV_BACKWARD_DATA ? p->y : p->x;
    float *in = malloc(nin * sizeof *in), *dy = malloc(p->ny * sizeof *dy), *w = malloc(p->nw * sizeof *w);
    const size_t count = p->pass == OD_CONV_BACKWARD_WEIGHT ? p->nw : CHECKED * each;
    p->ref = calloc(count, sizeof *p->ref);
    od_status status = in && dy && w && p->ref ? od_span_read(p->w, w, p->pass == OD_CONV_BACKWARD_WEIGHT ? 0 : p->nw)
                                               : od_fail(OD_ERR_MEMORY, "no memory for a reference");
    for (int i = 0; i < CHECKED && !status; i++) {
        const size_t image = (size_t)checked_image(p, i);
        if ((status = od_span_read(od_span_at(from, image * nin), in, nin)))
            break;
        if (p->pass == OD_CONV_FORWARD)
            conv_ref_forward(p->ref + i * each, in, w, &p->shape, 1);
        else if (p->pass == OD_CONV_BACKWARD_DATA)
            conv_ref_backward_data(p->ref + i * each, in, w, &p->shape, 1);
        else if (!(status = od_span_read(od_span_at(p->sparse, image * p->ny), dy, p->ny)))
            conv_ref_backward_weight(p->ref, in, dy, &p->shape, 1);
    }
    free(in);
    free(dy);
    free(w);
    return status;
}

static od_status conv_check(void *context) {
    conv_problem *p = context;
    const bool weight = p->pass == OD_CONV_BACKWARD_WEIGHT;
    const size_t each = p->nout / (size_t)p->n;
    od_status status = p->ref ? OD_OK : make_reference(p);
    if (status || (status = fresh_result(p, p->y)) ||
        (status = od_tune_near_float("the whole result", p->host, p->base, p->nout, float_tolerance)))
        return status;
    if (weight)
        return (status = fresh_result(p, p->sparse))
                   ? status
                   : od_tune_near("the gradient of two images", p->host, p->ref, p->nw, double_tolerance);
    for (int i = 0; i < CHECKED && !status; i++)
        status = od_tune_near("an image", p->host + (size_t)checked_image(p, i) * each, p->ref + i * each, each,
                              double_tolerance);
    return status;
}

static od_status create_tensors(conv_problem *p) {
    const size_t n = (size_t)p->n;
    const struct {
        od_span *span;
        size_t elements;
    } tensors[] = {{&p->x, n * p->nx}, {&p->w, p->nw}, {&p->y, n * p->ny}, {&p->sparse, n * p->ny}};
    od_status status = OD_OK;
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors && !status; i++) {
        if (i == 3 && p->pass != OD_CONV_BACKWARD_WEIGHT)
            break;
        if ((status = od_span_create(p->device, tensors[i].elements, tensors[i].span)) ||
            (status = i == 3 ? od_span_zero(*tensors[i].span, tensors[i].elements)
                             : od_fill_normal(p->device, *tensors[i].span, tensors[i].elements, 1, 1, i)))
            return status;
    }
    for (int i = 0; i < CHECKED && p->sparse.buffer && !status; i++) {
        const size_t at = (size_t)checked_image(p, i) * p->ny;
        status = od_span_copy(od_span_at(p->sparse, at), od_span_at(p->y, at), p->ny);
    }
    return status;
}

od_status od_tune_conv(od_device *device, const od_conv_shape *shape, int n, unsigned pass, od_tune_problem *out) {
    const char *name = pass == OD_CONV_FORWARD ? "forward" : pass == OD_CONV_BACKWARD_DATA ? "data" : "weight";
    conv_problem *p = calloc(1, sizeof *p);
    *out = (od_tune_problem){
        .context = p, .prepare = conv_prepare, .run = conv_run, .check = conv_check, .destroy = conv_destroy};
    if (!p)
        return od_fail(OD_ERR_MEMORY, "no memory for a convolution");
    (void)snprintf(out->name, sizeof out->name, "conv %s %dx%d %dx%d stride %d, %d to %d channels, %d images", name,
                   shape->kernel_h, shape->kernel_w, shape->h, shape->w, shape->stride, shape->c_in, shape->c_out, n);
    *p = (conv_problem){.device = device,
                        .shape = *shape,
                        .n = n,
                        .pass = pass,
                        .nx = (size_t)shape->h * shape->w * shape->c_in,
                        .ny = (size_t)od_conv_out_h(shape) * od_conv_out_w(shape) * shape->c_out,
                        .nw = (size_t)shape->kernel_h * shape->kernel_w * shape->c_in * shape->c_out};
    p->nout = pass == OD_CONV_FORWARD ? (size_t)n * p->ny : pass == OD_CONV_BACKWARD_DATA ? (size_t)n * p->nx : p->nw;
    p->host = malloc(p->nout * sizeof *p->host);
    p->base = malloc(p->nout * sizeof *p->base);
    if (!p->host || !p->base) {
        conv_destroy(p);
        out->context = NULL;
        return od_fail(OD_ERR_MEMORY, "no memory for a result");
    }
    od_status status = create_tensors(p);
    if (!status && !(status = conv_prepare(p)) && !(status = fresh_result(p, p->y)))
        memcpy(p->base, p->host, p->nout * sizeof *p->base);
    if (status) {
        conv_destroy(p);
        out->context = NULL;
    }
    return status;
}
