/* What a search times: the convolutions of ResNet-18 (CIFAR stem, 32x32 images) at widths 64 and 16 and batches 32 and
 * 128 of two views, and the products of projector, head and kNN. Several may be of one class: the first stands for it.
 */
#include <math.h>

#include "cli/tune/tune.h"

/* In units of the width, but for the stem's four input channels; what takes most of a step comes first. */
static const struct {
    int size, in, out, kernel, stride;
    double weight;
} layers[] = {
    {32, 1, 1, 3, 1, 3}, {16, 2, 2, 3, 1, 3}, {8, 4, 4, 3, 1, 3}, {4, 8, 8, 3, 1, 3},
    {32, 1, 2, 3, 2, 1}, {16, 2, 4, 3, 2, 1}, {8, 4, 8, 3, 2, 1}, {32, 0, 1, 3, 1, 1},
    {32, 1, 2, 1, 2, 1}, {16, 2, 4, 1, 2, 1}, {8, 4, 8, 1, 2, 1},
};
static const struct { int width, images; } steps[] = {{64, 64}, {16, 256}, {64, 256}, {16, 64}};
static const unsigned passes[] = {OD_CONV_FORWARD, OD_CONV_BACKWARD_DATA, OD_CONV_BACKWARD_WEIGHT};
enum {
    LAYERS = sizeof layers / sizeof *layers,
    PASSES = sizeof passes / sizeof *passes,
    CONVS = LAYERS * PASSES * (int)(sizeof steps / sizeof *steps),
};

static const od_gemm_shape products[] = {
    /* forward, backward by data and by weights, of 64 and of 256 rows */
    {false, false, 64, 2048, 512},
    {false, false, 64, 512, 512},
    {false, false, 64, 128, 512},
    {false, false, 64, 256, 2048},
    {false, true, 64, 512, 2048},
    {false, true, 64, 512, 512},
    {false, true, 64, 512, 128},
    {false, true, 64, 2048, 256},
    {true, false, 512, 2048, 64},
    {true, false, 512, 128, 64},
    {true, false, 2048, 256, 64},
    {false, false, 256, 2048, 512},
    {false, false, 256, 128, 512},
    {false, false, 256, 256, 2048},
    {false, true, 256, 512, 2048},
    {false, true, 256, 512, 128},
    {false, true, 256, 2048, 256},
    {true, false, 512, 2048, 256},
    {true, false, 512, 128, 256},
    {true, false, 2048, 256, 256},
    /* kNN's similarities */
    {false, true, 512, 4096, 512},
    {false, true, 512, 4096, 128},
};
enum { PRODUCTS = sizeof products / sizeof *products };

/* CLBlast has a kernel for large products, one for small ones, and a size from which it takes the former. */
static const struct {
    const char *variant;
    od_gemm_shape shape;
} clblast[] = {
    {"clblast_xgemm", {false, false, 1024, 1024, 1024}},
    {"clblast_xgemm_direct", {false, false, 64, 128, 512}},
    {"clblast_routine", {false, false, 64, 2048, 512}},
};
enum { CLBLAST = sizeof clblast / sizeof *clblast };

size_t od_tune_problem_count(const od_device *device, bool with_clblast) {
    const bool gpu = od_device_family(device) == OD_FAMILY_GPU && od_device_get_info(device)->type != OD_DEVICE_CPU;
    return CONVS + PRODUCTS + (gpu || with_clblast ? CLBLAST : 0);
}

double od_tune_problem_weight(size_t index) {
    return index < CONVS ? layers[index / PASSES % LAYERS].weight : index < CONVS + PRODUCTS ? 0.5 : 4;
}

static od_status create_conv(od_device *device, size_t index, od_tune_problem *out) {
    const size_t layer = index / PASSES % LAYERS, step = index / PASSES / LAYERS;
    const int width = steps[step].width, kernel = layers[layer].kernel;
    const od_conv_shape shape = {.h = layers[layer].size,
                                 .w = layers[layer].size,
                                 .c_in = layers[layer].in ? layers[layer].in * width : 4,
                                 .c_out = layers[layer].out * width,
                                 .kernel_h = kernel,
                                 .kernel_w = kernel,
                                 .stride = layers[layer].stride,
                                 .pad = kernel / 2};
    return od_tune_conv(device, &shape, steps[step].images, passes[index % PASSES], out);
}

od_status od_tune_problem_create(od_device *device, size_t index, od_tune_problem *out) {
    if (index < CONVS)
        return create_conv(device, index, out);
    if (index < CONVS + PRODUCTS)
        return od_tune_gemm(device, &products[index - CONVS], NULL, out);
    const size_t i = index - CONVS - PRODUCTS;
    od_status status = od_tune_gemm(device, &clblast[i].shape, "clblast", out);
    out->variant = clblast[i].variant;
    return status;
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

typedef struct error_sums {
    double difference, norm;
} error_sums;

static od_status judge(const char *what, error_sums s, double tolerance) {
    const double error = sqrt(s.difference / s.norm);
    if (isfinite(s.difference) && s.norm > 0 && error <= tolerance)
        return OD_OK;
    return od_fail(OD_ERR_NUMERIC, "%s: relative error %.1e, where at most %.1e is right", what, error, tolerance);
}

od_status od_tune_near(const char *what, const float *out, const double *ref, size_t count, double tolerance) {
    error_sums s = {0, 0};
    for (size_t i = 0; i < count; i++) {
        s.difference += (out[i] - ref[i]) * (out[i] - ref[i]);
        s.norm += ref[i] * ref[i];
    }
    return judge(what, s, tolerance);
}

od_status od_tune_near_float(const char *what, const float *out, const float *ref, size_t count, double tolerance) {
    error_sums s = {0, 0};
    for (size_t i = 0; i < count; i++) {
        const double d = (double)out[i] - ref[i];
        s.difference += d * d;
        s.norm += (double)ref[i] * ref[i];
    }
    return judge(what, s, tolerance);
}
