/* offdiag bench step: one whole training step of ResNet-18 (CIFAR stem, 32x32, two views), projector 8w -> 2048 -> 256,
 * linear head, cosine loss, SGD; the views are random and already on the device. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/options.h"
#include "cli/bench_step.h"
#include "cli/cli.h"
#include "dist/team.h"
#include "offdiag/ops/optim.h"
#include "ops/variant.h"

enum { DEVICES = 64 };

#define T step_args
static const od_option rows[] = {
    OD_OPT_INT(T, width, "width", 1, 1024, "channels of the first stage"),
    OD_OPT_INT(T, batch, "batch", 2, 65536, "images, two views of each"),
    OD_OPT_INT(T, runs, "runs", 1, 1000, "timed steps, after two warm-up steps; the median counts"),
    OD_OPT_STRING(T, device, "device", "SPEC",
                  "device, or several: A,B, all, gpus (default: $OFFDIAG_DEVICE, then auto)"),
    OD_OPT_STRING(T, split, "split", "N:M", "several devices: their parts of the batch (default: by what each can do)"),
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

typedef struct step_bench {
    od_limits limits;
    od_device *device;
    od_model *model;
    od_span x, loss;
    double *seconds, *cpu_seconds; /* (runs) */
    float first_loss, last_loss;
    od_work_done work; /* of all runs */
    uint64_t peak_rss; /* of the process, in bytes, before the limits are measured */
} step_bench;

od_model_config od_bench_step_model(int width) {
    return (od_model_config){.encoder = "resnet18",
                             .width = width,
                             .image_size = 32,
                             .proj_hidden = 2048,
                             .proj_dim = 256,
                             .head_hidden = 512,
                             .head = OD_HEAD_LINEAR,
                             .method = OD_SIMSIAM,
                             .loss = OD_LOSS_COSINE,
                             .seed = 1};
}

static od_status prepare(step_bench *b, const step_args *a) {
    od_device_options options = {.family = (od_family)a->kernels, .profile = a->profile};
    const od_model_config config = od_bench_step_model(a->width);
    size_t elements = (size_t)2 * a->batch * 32 * 32 * 4;
    od_status status = OD_OK;
    if ((status = od_device_open(a->device, &options, &b->device)) ||
        (status = od_model_create(b->device, &config, a->batch, &b->model)) ||
        (status = od_span_create(b->device, elements, &b->x)) || (status = od_span_create(b->device, 1, &b->loss)))
        return status;
    return od_fill_normal(b->device, b->x, elements, 1, 1, 0);
}

/* Whole steps, each waited for. */
static od_status measure(step_bench *b, const step_args *a) {
    od_optim_rates sgd = {.lr = 0.05f, .momentum = 0.9f, .weight_decay = 1e-4f, .head_lr = 0.05f};
    od_status status = OD_OK;
    for (int i = -2; i < a->runs; i++) {
        if (i == 0)
            od_device_profile_reset(b->device);
        double start = od_now(), cpu_start = od_cpu_now();
        if ((status = od_model_step(b->model, b->loss, b->x, a->batch, 1, false)) ||
            (status = od_model_optimize(b->model, &sgd)) || (status = od_device_finish(b->device)))
            return status;
        if (i >= 0) {
            b->seconds[i] = od_now() - start;
            b->cpu_seconds[i] = od_cpu_now() - cpu_start;
        }
        if ((status = od_span_read(b->loss, i == -2 ? &b->first_loss : &b->last_loss, 1)))
            return status;
    }
    struct rusage used;
    b->work = od_device_work(b->device);
    if (getrusage(RUSAGE_SELF, &used) == 0)
        b->peak_rss = (uint64_t)used.ru_maxrss * 1024; /* Linux counts in KiB */
    return isfinite(b->last_loss) ? OD_OK : od_fail(OD_ERR_NUMERIC, "the loss is %g", (double)b->last_loss);
}

static od_work per_run(od_work work, int runs) {
    return (od_work){work.flop / runs, work.bytes / runs};
}

static void print_kernel(const od_limits *limits, const char *kernel, double launches, double seconds, od_work work) {
    const double flops = work.flop / seconds / 1e9, bytes = work.bytes / seconds / 1e9;
    printf("  %8.0f %9.3f ", launches, 1e3 * seconds);
    if (work.bytes > 0)
        printf("%9.1f %5.1f %8.1f %5.1f", flops, 100 * flops / limits->gflop_per_s, bytes,
               100 * bytes / limits->gb_per_s);
    else
        printf("%9s %5s %8s %5s", "-", "-", "-", "-");
    printf("  %s\n", kernel);
}

static od_status profile_rows(step_bench *b, const step_args *a, json_t *array) {
    od_profile_row *profile = NULL;
    size_t count = 0;
    od_status status = od_device_profile(b->device, &profile, &count);
    if (count && !a->json)
        printf("  %8s %9s %9s %5s %8s %5s\n", "launches", "ms", "GFLOP/s", "%", "GB/s", "%");
    for (size_t i = 0; i < count && !status; i++) {
        double per_step = profile[i].seconds / a->runs;
        double launches = (double)profile[i].launches / a->runs;
        od_work work = per_run(profile[i].work, a->runs);
        if (!a->json)
            print_kernel(&b->limits, profile[i].kernel, launches, per_step, work);
        json_t *row = json_pack("{s:s, s:f, s:f, s:f, s:f}", "kernel", profile[i].kernel, "launches", launches,
                                "seconds", per_step, "flop", work.flop, "bytes", work.bytes);
        if (work.bytes > 0)
            (void)json_object_set_new(row, "gflop_per_s", json_real(work.flop / per_step / 1e9));
        od_bench_rates_json(row, &b->limits, work, per_step);
        (void)json_array_append_new(array, row);
    }
    free(profile);
    return status;
}

static void print_step(const step_bench *b, const step_args *a, double seconds, double gflop, double peak) {
    const od_device_info *d = od_device_get_info(b->device);
    const od_work work = per_run(b->work.work, a->runs);
    printf("%s, width %d, batch %d: %.4f s a step, %.1f images/s, %.0f GFLOP/s, peak %.0f MiB, programs %.2f s\n",
           d->name, a->width, a->batch, seconds, a->batch / seconds, gflop / seconds, peak / (1 << 20),
           od_device_build_stats(b->device).seconds);
    printf("  operations and bytes of the kernels themselves: %.0f GFLOP/s", work.flop / seconds / 1e9);
    od_bench_rates_print(&b->limits, work, seconds);
    if (b->work.untold)
        printf("  (without %.0f of %.0f launches a step, which don't tell theirs)\n", (double)b->work.untold / a->runs,
               (double)b->work.launches / a->runs);
}

static od_status report(step_bench *b, const step_args *a) {
    const od_device_info *d = od_device_get_info(b->device);
    const double seconds = od_bench_median(b->seconds, a->runs), gflop = step_gflop(a->width, a->batch);
    const uint64_t peak = od_device_memory(b->device).peak;
    const size_t parameters = od_param_table_stored_count(od_model_params(b->model));
    json_t *ref = json_array(), *kernels = json_array();
    const char *const *names = od_variant_ref_used();
    for (size_t i = 0; names[i]; i++)
        json_array_append_new(ref, json_string(names[i]));
    if (!a->json)
        print_step(b, a, seconds, gflop, (double)peak);
    od_status status = profile_rows(b, a, kernels);
    json_t *document = json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:f, s:f, s:O, s:O}", "device",
        d->name, "device_type", cli_device_types[d->type], "kernels", od_family_name(od_device_family(b->device)),
        "width", a->width, "batch", a->batch, "parameters", (json_int_t)parameters, "first_loss", b->first_loss,
        "last_loss", b->last_loss, "seconds", seconds, "cpu_seconds", od_bench_median(b->cpu_seconds, a->runs),
        "images_per_s", a->batch / seconds, "gflop", gflop, "gflop_per_s", gflop / seconds, "peak_bytes",
        (json_int_t)peak, "peak_rss_bytes", (json_int_t)b->peak_rss, "launches", (double)b->work.launches / a->runs,
        "untold_launches", (double)b->work.untold / a->runs, "ref_variants_used", ref, "profile", kernels);
    if (!status && !document)
        status = od_fail(OD_ERR_MEMORY, "no memory for a JSON document");
    if (!status && a->json) {
        od_bench_limits_json(document, &b->limits);
        od_bench_rates_json(document, &b->limits, per_run(b->work.work, a->runs), seconds);
        status = od_json_print(document);
    }
    json_decref(document);
    json_decref(ref);
    json_decref(kernels);
    return status;
}

static od_status bench_one(const step_args *args) {
    step_args a = *args;
    step_bench b = {0};
    od_status status = OD_OK;
    b.seconds = calloc((size_t)a.runs, sizeof *b.seconds);
    b.cpu_seconds = calloc((size_t)a.runs, sizeof *b.cpu_seconds);
    if (!b.seconds || !b.cpu_seconds)
        status = od_fail(OD_ERR_MEMORY, "no memory for %d times", a.runs);
    if (!status && !(status = prepare(&b, &a)) && !(status = measure(&b, &a)) &&
        !(status = od_bench_limits(a.device, !a.json, &b.limits)))
        status = report(&b, &a);
    free(b.seconds);
    free(b.cpu_seconds);
    od_model_destroy(b.model);
    od_buffer_release(b.x.buffer);
    od_buffer_release(b.loss.buffer);
    od_device_close(b.device);
    return status;
}

od_status od_bench_step(int argc, char **argv) {
    step_args a = {.width = 64, .batch = 32, .runs = 6};
    od_options table = {.rows = rows, .count = sizeof rows / sizeof *rows, .target = &a};
    od_positionals none = {.max = 0, .usage = "", .about = "Time a whole training step of ResNet-18."};
    od_device_info *infos = NULL;
    const od_device_info *chosen[DEVICES];
    size_t indices[DEVICES], count = 0, selected = 0;
    const char *reason = NULL;
    bool help = false;
    od_status status = od_options_parse(&table, 1, &none, argc, argv, &help);
    if (status || help)
        return status;
    if ((status = od_world_begin()) || (status = od_device_list(&infos, &count)) ||
        (status = od_devices_select(infos, count, a.device, indices, DEVICES, &selected, &reason)))
        goto out;
    for (size_t i = 0; i < selected; i++)
        chosen[i] = &infos[indices[i]];
    const bool team = selected > 1 || od_world_ranks() > 1;
    if (team && a.profile)
        status = od_fail(OD_ERR_USAGE, "--profile is for one device");
    else if (!team && a.split[0])
        status = od_fail(OD_ERR_USAGE, "--split is for several devices");
    else
        status = team ? od_bench_team(&a, chosen, (int)selected) : bench_one(&a);
out:
    free(infos);
    return status;
}
