#include "offdiag/ops/conv.h"

#include <stdlib.h>

#include "offdiag/ops/norm.h"
#include "offdiag/ops/pointwise.h"
#include "ops/conv_impl.h"

/* Best first. */
#define GATHER_VARIANTS(gpu_winograd_supports)                                                                         \
    {"cpu_winograd", OD_FAMILY_CPU, od_conv_winograd_supports, &od_conv_winograd},                                     \
        {"cpu_direct", OD_FAMILY_CPU, od_conv_cpu_supports, &od_conv_cpu},                                             \
        {"gpu_winograd", OD_FAMILY_GPU, gpu_winograd_supports, &od_conv_gpu_winograd},                                 \
        {"gpu_implicit_gemm", OD_FAMILY_GPU, od_conv_gpu_supports, &od_conv_gpu}, {                                    \
        "ref", OD_FAMILY_REF, NULL, &od_conv_ref                                                                       \
    }
static const od_variant forward_variants[] = {GATHER_VARIANTS(od_conv_gpu_winograd_forward)};
static const od_variant data_variants[] = {GATHER_VARIANTS(od_conv_gpu_winograd_backward_data)};
static const od_variant weight_variants[] = {
    {"cpu_winograd", OD_FAMILY_CPU, od_conv_winograd_supports, &od_conv_winograd_weight},
    {"cpu_direct", OD_FAMILY_CPU, od_conv_cpu_supports, &od_conv_cpu_weight},
    {"gpu_winograd", OD_FAMILY_GPU, od_conv_gpu_winograd_backward_weight, &od_conv_gpu_winograd_weight},
    {"gpu_implicit_gemm", OD_FAMILY_GPU, od_conv_gpu_supports, &od_conv_gpu_weight},
    {"ref", OD_FAMILY_REF, NULL, &od_conv_ref},
};

static const struct pass {
    unsigned flag;
    const char *operation;
    const od_variant *variants;
    size_t count;
} pass_table[3] = {
    {OD_CONV_FORWARD, "conv_forward", forward_variants, sizeof forward_variants / sizeof *forward_variants},
    {OD_CONV_BACKWARD_DATA, "conv_backward_data", data_variants, sizeof data_variants / sizeof *data_variants},
    {OD_CONV_BACKWARD_WEIGHT, "conv_backward_weight", weight_variants,
     sizeof weight_variants / sizeof *weight_variants},
};
enum { FORWARD, BACKWARD_DATA, BACKWARD_WEIGHT };

struct od_conv {
    od_device *device;
    od_conv_shape shape;
    const od_variant *variant[3]; /* NULL: the pass was not asked for */
    void *state[3];
    od_span w;
};

static const od_conv_impl *impl_of(const od_conv *conv, int pass) {
    return conv->variant[pass]->run;
}

static od_status check_shape(const od_conv_shape *s) {
    const int limit = 1 << 24; /* keeps the sums of sizes below within 32 bits */
    const int sizes[] = {s->h, s->w, s->c_in, s->c_out, s->kernel_h, s->kernel_w, s->stride, s->pad + 1};
    bool bad = false;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        bad = bad || sizes[i] < 1 || sizes[i] > limit;
    /* a negative numerator would round towards an output of 1 */
    if (bad || s->h + 2 * s->pad < s->kernel_h || s->w + 2 * s->pad < s->kernel_w ||
        (int64_t)s->kernel_h * s->kernel_w * s->c_in > INT32_MAX / 4 || (int64_t)s->stride * s->stride > limit)
        return od_fail(OD_ERR_ARGUMENT,
                       "convolution without output: input %dx%dx%d, %d filters %dx%d, stride %d, pad %d", s->h, s->w,
                       s->c_in, s->c_out, s->kernel_h, s->kernel_w, s->stride, s->pad);
    return OD_OK;
}

od_status od_conv_create(od_device *device, const od_conv_shape *shape, unsigned passes, od_conv **out) {
    *out = NULL;
    od_status status = check_shape(shape);
    if (status)
        return status;
    od_conv *conv = calloc(1, sizeof *conv);
    if (!conv)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a plan");
    conv->device = device;
    conv->shape = *shape;
    for (int i = 0; i < 3 && !status; i++) {
        if (!(passes & pass_table[i].flag))
            continue;
        size_t choice =
            od_variant_choose(device, pass_table[i].operation, pass_table[i].variants, pass_table[i].count, shape);
        conv->variant[i] = &pass_table[i].variants[choice];
        status = impl_of(conv, i)->create(device, shape, pass_table[i].flag, &conv->state[i]);
    }
    if (status) {
        od_conv_destroy(conv);
        conv = NULL;
    }
    *out = conv;
    return status;
}

void od_conv_destroy(od_conv *conv) {
    if (!conv)
        return;
    for (int i = 0; i < 3; i++)
        if (conv->variant[i])
            impl_of(conv, i)->destroy(conv->state[i]);
    free(conv);
}

static od_status check_span(const char *pass, const char *name, od_span span, uint64_t elements) {
    if (!span.buffer)
        return od_fail(OD_ERR_ARGUMENT, "%s: no %s", pass, name);
    uint64_t room = od_buffer_size(span.buffer) / sizeof(float);
    if (span.offset > room || elements > room - span.offset)
        return od_fail(OD_ERR_ARGUMENT, "%s: %s of %llu elements at %zu passes the end of its buffer of %llu", pass,
                       name, (unsigned long long)elements, span.offset, (unsigned long long)room);
    return OD_OK;
}

static uint64_t x_size(const od_conv *c, int n) {
    return (uint64_t)n * c->shape.h * c->shape.w * c->shape.c_in;
}
static uint64_t y_size(const od_conv *c, int n) {
    return (uint64_t)n * od_conv_out_h(&c->shape) * od_conv_out_w(&c->shape) * c->shape.c_out;
}
static uint64_t w_size(const od_conv *c) {
    return (uint64_t)c->shape.kernel_h * c->shape.kernel_w * c->shape.c_in * c->shape.c_out;
}

od_status od_conv_set_weights(od_conv *conv, od_span w) {
    od_status status = check_span("conv_set_weights", "w", w, w_size(conv));
    if (!status)
        conv->w = w;
    return status;
}

/* What all passes ask before they run. */
static od_status check_pass(const od_conv *conv, int pass, int n) {
    const char *name = pass_table[pass].operation;
    if (!conv->variant[pass])
        return od_fail(OD_ERR_ARGUMENT, "%s: the plan was made without this pass", name);
    if (pass != BACKWARD_WEIGHT && !conv->w.buffer)
        return od_fail(OD_ERR_ARGUMENT, "%s: no weights were set", name);
    if (n < 0)
        return od_fail(OD_ERR_ARGUMENT, "%s: batch size %d", name, n);
    return OD_OK;
}

static od_status check_input(const od_conv *conv, int pass, const od_conv_input *x, int n) {
    const char *name = pass_table[pass].operation;
    od_status status = check_span(name, "x", x->x, x_size(conv, n));
    if (status || !x->affine.buffer)
        return status;
    const uint64_t c = (uint64_t)conv->shape.c_in;
    if (x->groups < 1 || n % x->groups != 0)
        return od_fail(OD_ERR_ARGUMENT, "%s: %d images in %d groups", name, n, x->groups);
    return check_span(name, "affine", x->affine, (uint64_t)(x->groups - 1) * x->stride + 2 * c);
}

/* The weights that a run reads: packed into borrowed memory (args->weights.buffer is then not w's), or w itself. */
static od_status run_pass(od_conv *conv, int pass, od_conv_args *args) {
    const od_conv_impl *impl = impl_of(conv, pass);
    void *state = conv->state[pass];
    const size_t packed = pass != BACKWARD_WEIGHT && impl->packed_size ? impl->packed_size(state, args->n) : 0;
    args->weights = conv->w;
    if (!packed)
        return impl->run(state, args);
    od_status status = od_span_borrow(conv->device, packed, &args->weights);
    if (status)
        return status;
    status = impl->pack(state, args->weights, conv->w);
    if (!status)
        status = impl->run(state, args);
    od_buffer_release(args->weights.buffer);
    return status;
}

/* A pass over the input x. Where the variant can't make it as it reads, it is made here, in *made. */
static od_status run_on_input(od_conv *conv, int pass, const od_conv_input *x, od_conv_args *args, od_span *made) {
    args->in = x->x;
    args->groups = args->stats ? args->stats->groups : 1;
    if (!impl_of(conv, pass)->fuses)
        args->stats = NULL;
    if (!x->affine.buffer)
        return run_pass(conv, pass, args);
    args->groups = x->groups;
    if (impl_of(conv, pass)->fuses) {
        args->affine = x->affine;
        args->stride = x->stride;
        return run_pass(conv, pass, args);
    }
    const int rows = args->n / x->groups * conv->shape.h * conv->shape.w;
    od_status status = od_span_borrow(conv->device, x_size(conv, args->n), made);
    if (!status)
        status = od_affine_relu(conv->device, *made, x->x, x->affine, x->stride, x->groups, rows, conv->shape.c_in);
    args->in = *made;
    return status ? status : run_pass(conv, pass, args);
}

od_status od_conv_forward_fused(od_conv *conv, od_span y, const od_conv_input *x, int n, od_conv_stats *stats) {
    od_status status = check_pass(conv, FORWARD, n);
    if (!status)
        status = check_span("conv_forward", "y", y, y_size(conv, n));
    if (!status)
        status = check_input(conv, FORWARD, x, n);
    if (!status && stats &&
        (stats->groups < 1 || n % stats->groups != 0 ||
         (x->affine.buffer && x->groups != 1 && x->groups != stats->groups)))
        status = od_fail(OD_ERR_ARGUMENT, "conv_forward: statistics of %d images in %d groups, their input in %d", n,
                         stats->groups, x->affine.buffer ? x->groups : 1);
    if (stats) {
        stats->partial = OD_NO_SPAN;
        stats->parts = 0;
    }
    if (status || n == 0)
        return status;
    od_span made = OD_NO_SPAN;
    od_conv_args args = {.out = y, .n = n, .stats = stats};
    status = run_on_input(conv, FORWARD, x, &args, &made);
    od_buffer_release(made.buffer);
    if (status && stats) {
        od_buffer_release(stats->partial.buffer);
        stats->partial = OD_NO_SPAN;
    }
    return status;
}

od_status od_conv_forward(od_conv *conv, od_span y, od_span x, int n) {
    return od_conv_forward_fused(conv, y, &(od_conv_input){.x = x}, n, NULL);
}

/* dx += where the variant can't: by way of borrowed memory. */
static od_status add_pass(od_conv *conv, od_conv_args *args) {
    const od_span dx = args->out;
    const uint64_t size = x_size(conv, args->n);
    od_status status = od_span_borrow(conv->device, size, &args->out);
    if (status)
        return status;
    args->accumulate = false;
    status = run_pass(conv, BACKWARD_DATA, args);
    if (!status)
        status = od_add(conv->device, dx, dx, args->out, size);
    od_buffer_release(args->out.buffer);
    return status;
}

static od_status check_grads(const od_conv *conv, const od_conv_grads *g, int n) {
    const char *name = pass_table[BACKWARD_DATA].operation;
    if (g->groups < 1 || n % g->groups != 0)
        return od_fail(OD_ERR_ARGUMENT, "%s: %d images in %d groups", name, n, g->groups);
    od_status status = check_span(name, "u", g->u, x_size(conv, n));
    if (!status)
        status = check_span(name, "saved", g->saved, (uint64_t)g->groups * OD_BN_SAVED * (uint64_t)conv->shape.c_in);
    return status || !g->y.buffer ? status : check_span(name, "y", g->y, x_size(conv, n));
}

od_status od_conv_backward_data_fused(od_conv *conv, od_span dx, od_span dy, int n, bool add, od_conv_grads *grads) {
    od_status status = check_pass(conv, BACKWARD_DATA, n);
    if (!status)
        status = check_span("conv_backward_data", "dx", dx, x_size(conv, n));
    if (!status)
        status = check_span("conv_backward_data", "dy", dy, y_size(conv, n));
    if (!status && grads)
        status = check_grads(conv, grads, n);
    if (grads) {
        grads->partial = OD_NO_SPAN;
        grads->parts = 0;
    }
    if (status || n == 0)
        return status;
    const od_conv_impl *impl = impl_of(conv, BACKWARD_DATA);
    od_conv_args args = {.out = dx, .in = dy, .n = n, .groups = 1, .accumulate = add};
    if (grads && impl->sums && (impl->adds || !add)) {
        args.grads = grads;
        args.groups = grads->groups;
    }
    status = add && !impl->adds ? add_pass(conv, &args) : run_pass(conv, BACKWARD_DATA, &args);
    if (status && grads) {
        od_buffer_release(grads->partial.buffer);
        grads->partial = OD_NO_SPAN;
    }
    return status;
}

od_status od_conv_backward_data(od_conv *conv, od_span dx, od_span dy, int n) {
    return od_conv_backward_data_fused(conv, dx, dy, n, false, NULL);
}

od_status od_conv_backward_data_add(od_conv *conv, od_span dx, od_span dy, int n) {
    return od_conv_backward_data_fused(conv, dx, dy, n, true, NULL);
}

od_status od_conv_backward_weight_fused(od_conv *conv, od_span dw, const od_conv_input *x, od_span dy, int n,
                                        bool accumulate) {
    od_status status = check_pass(conv, BACKWARD_WEIGHT, n);
    if (!status)
        status = check_span("conv_backward_weight", "dw", dw, w_size(conv));
    if (!status && n == 0)
        return accumulate ? OD_OK : od_span_zero(dw, w_size(conv));
    if (!status)
        status = check_input(conv, BACKWARD_WEIGHT, x, n);
    if (!status)
        status = check_span("conv_backward_weight", "dy", dy, y_size(conv, n));
    if (status)
        return status;
    od_span made = OD_NO_SPAN;
    od_conv_args args = {.out = dw, .grad = dy, .n = n, .accumulate = accumulate};
    status = run_on_input(conv, BACKWARD_WEIGHT, x, &args, &made);
    od_buffer_release(made.buffer);
    return status;
}

od_status od_conv_backward_weight(od_conv *conv, od_span dw, od_span x, od_span dy, int n, bool accumulate) {
    return od_conv_backward_weight_fused(conv, dw, &(od_conv_input){.x = x}, dy, n, accumulate);
}

const char *od_conv_variant(const od_conv *conv, unsigned pass) {
    for (int i = 0; i < 3; i++)
        if (pass_table[i].flag == pass && conv->variant[i])
            return conv->variant[i]->name;
    return "none";
}

double od_conv_flop(const od_conv_shape *s, int n) {
    return 2.0 * n * od_conv_out_h(s) * od_conv_out_w(s) * s->c_out * s->kernel_h * s->kernel_w * s->c_in;
}
