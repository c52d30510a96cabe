/* offdiag bench step: one whole training step of ResNet-18 (CIFAR stem, 32x32, two views), projector 8w -> 2048 -> 256,
 * linear head, cosine loss, SGD; the views are random and already on the device. */
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/options.h"
#include "cli/bench.h"
#include "offdiag/model.h"
#include "offdiag/ops/optim.h"
#include "ops/variant.h"
#include "train/progress.h"

typedef struct step_args {
    int width, batch, runs, kernels;
    char device[256];
    bool profile, json;
} step_args;

#define T step_args
static const od_option rows[] = {
    OD_OPT_INT(T, width, "width", 1, 1024, "channels of the first stage"),
    OD_OPT_INT(T, batch, "batch", 2, 65536, "images, two views of each"),
    OD_OPT_INT(T, runs, "runs", 1, 1000, "timed steps, after two warm-up steps; the median counts"),
    OD_OPT_STRING(T, device, "device", "SPEC", "device (default: $OFFDIAG_DEVICE, then auto)"),
    OD_OPT_CHOICE(T, kernels, "kernels", od_family_names, "kernel family"),
    OD_OPT_FLAG(T, profile, "profile", "a row per kernel (its events slow the step a little)"),
    OD_OPT_FLAG(T, json, "json", "one JSON document"),
};
#undef T

/* Direct-convolution work of a step, in GFLOP: forward once, backward twice that, two views. */
static double step_gflop(int width, int batch) {
    double hw = 32 * 32, in = width, total = 2.0 * 3 * 9 * width * hw;
    for (int stage = 0; stage < 4; stage++) {
        double out = (double)(width << stage);
        hw /= stage ? 4 : 1;
        total += 2 * 9 * in * out * hw + 3 * 2 * 9 * out * out * hw + (stage ? 2 * in * out * hw : 0);
        in = out;
    }
    return total * 3 * 2 * batch / 1e9;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct step_bench {
    od_device *device;
    od_model *model;
    od_span x, loss;
} step_bench;

static od_status prepare(step_bench *b, const step_args *a) {
    od_device_options options = {.family = (od_family)a->kernels, .profile = a->profile};
    od_model_config config = {.encoder = "resnet18",
                              .width = a->width,
                              .image_size = 32,
                              .proj_hidden = 2048,
                              .proj_dim = 256,
                              .head_hidden = 512,
                              .head = OD_HEAD_LINEAR,
                              .method = OD_SIMSIAM,
                              .loss = OD_LOSS_COSINE,
                              .seed = 1};
    size_t elements = (size_t)2 * a->batch * 32 * 32 * 4;
    od_status status = OD_OK;
    if ((status = od_device_open(a->device, &options, &b->device)) ||
        (status = od_model_create(b->device, &config, a->batch, &b->model)) ||
        (status = od_span_create(b->device, elements, &b->x)) || (status = od_span_create(b->device, 1, &b->loss)))
        return status;
    return od_fill_normal(b->device, b->x, elements, 1, 1, 0);
}

/* seconds (runs) of whole steps, each waited for. */
static od_status measure(step_bench *b, const step_args *a, double *seconds) {
    od_optim_rates sgd = {.lr = 0.05f, .momentum = 0.9f, .weight_decay = 1e-4f, .head_lr = 0.05f};
    od_status status = OD_OK;
    for (int i = -2; i < a->runs; i++) {
        if (i == 0)
            od_device_profile_reset(b->device);
        double start = od_now();
        if ((status = od_model_step(b->model, b->loss, b->x, a->batch, 1, false)) ||
            (status = od_model_optimize(b->model, &sgd)) || (status = od_device_finish(b->device)))
            return status;
        if (i >= 0)
            seconds[i] = od_now() - start;
    }
    return OD_OK;
}

static od_status profile_rows(step_bench *b, const step_args *a, json_t *array) {
    od_profile_row *profile = NULL;
    size_t count = 0;
    od_status status = od_device_profile(b->device, &profile, &count);
    for (size_t i = 0; i < count && !status; i++) {
        double per_step = profile[i].seconds / a->runs;
        double launches = (double)profile[i].launches / a->runs;
        if (!a->json)
            printf("  %-64s %7.0f launches %10.3f ms\n", profile[i].kernel, launches, 1e3 * per_step);
        json_array_append_new(array, json_pack("{s:s, s:f, s:f}", "kernel", profile[i].kernel, "launches", launches,
                                               "seconds", per_step));
    }
    free(profile);
    return status;
}

static od_status report(step_bench *b, const step_args *a, double seconds) {
    const od_device_info *d = od_device_get_info(b->device);
    double gflop = step_gflop(a->width, a->batch);
    uint64_t peak = od_device_memory(b->device).peak;
    od_build_stats build = od_device_build_stats(b->device);
    json_t *ref = json_array(), *kernels = json_array();
    const char *const *names = od_variant_ref_used();
    for (size_t i = 0; names[i]; i++)
        json_array_append_new(ref, json_string(names[i]));
    if (!a->json)
        printf("%s, width %d, batch %d: %.4f s a step, %.1f images/s, %.0f GFLOP/s, peak %.0f MiB, programs %.2f s\n",
               d->name, a->width, a->batch, seconds, a->batch / seconds, gflop / seconds, (double)peak / (1 << 20),
               build.seconds);
    od_status status = profile_rows(b, a, kernels);
    json_t *document =
        json_pack("{s:s, s:s, s:i, s:i, s:f, s:f, s:f, s:f, s:I, s:O, s:O}", "device", d->name, "kernels",
                  od_family_name(od_device_family(b->device)), "width", a->width, "batch", a->batch, "seconds", seconds,
                  "images_per_s", a->batch / seconds, "gflop", gflop, "gflop_per_s", gflop / seconds, "peak_bytes",
                  (json_int_t)peak, "ref_variants_used", ref, "profile", kernels);
    if (!status)
        status = !document ? od_fail(OD_ERR_MEMORY, "no memory for a JSON document")
                 : a->json ? od_json_print(document)
                           : OD_OK;
    json_decref(document);
    json_decref(ref);
    json_decref(kernels);
    return status;
}

od_status od_bench_step(int argc, char **argv) {
    step_args a = {.width = 64, .batch = 32, .runs = 6};
    od_options table = {.rows = rows, .count = sizeof rows / sizeof *rows, .target = &a};
    od_positionals none = {.max = 0, .usage = "", .about = "Time a whole training step of ResNet-18."};
    step_bench b = {0};
    bool help = false;
    od_status status = od_options_parse(&table, 1, &none, argc, argv, &help);
    if (status || help)
        return status;
    double *seconds = calloc((size_t)a.runs, sizeof *seconds);
    if (!seconds)
        return od_fail(OD_ERR_MEMORY, "no memory for %d times", a.runs);
    if (!(status = prepare(&b, &a)) && !(status = measure(&b, &a, seconds))) {
        qsort(seconds, (size_t)a.runs, sizeof *seconds, by_value);
        status = report(&b, &a, 0.5 * (seconds[(a.runs - 1) / 2] + seconds[a.runs / 2]));
    }
    free(seconds);
    od_model_destroy(b.model);
    od_buffer_release(b.x.buffer);
    od_buffer_release(b.loss.buffer);
    od_device_close(b.device);
    return status;
}
