/* offdiag bench step over several devices, of this process and of others under MPI: what each does alone, what all do
 * together, and what the sums between them cost. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "cli/bench_step.h"
#include "cli/cli.h"
#include "dist/team.h"
#include "offdiag/ops/optim.h"
#include "train/shares.h"

typedef struct bench_member {
    const step_args *args;
    const od_device_info *info;
    od_member *member;
    od_device *device;
    od_model *model;
    od_span x, loss;
} bench_member;

/* Figures of all members, the same in each. */
typedef struct team_figures {
    int count;
    double *alone;            /* (count) images/s of each by itself */
    int *shares;              /* (count) */
    double *work;             /* (count) seconds of a step that each works */
    double seconds;           /* a step */
    double reduction;         /* summing all gradients, by itself */
    double exposed;           /* what a step waits for it */
    double sums, bytes, loss; /* seconds of a step in sums over devices; gradient bytes of a step */
} team_figures;

static od_status build(bench_member *b, int n, bool join) {
    const od_model_config config = od_bench_step_model(b->args->width);
    const size_t elements = (size_t)2 * n * 32 * 32 * 4;
    od_status status = OD_OK;
    od_model_destroy(b->model);
    od_buffer_release(b->x.buffer);
    b->model = NULL;
    b->x = OD_NO_SPAN;
    if ((status = od_model_create(b->device, &config, n, &b->model)) ||
        (join && (status = od_model_join(b->model, b->member))) ||
        (status = od_span_create(b->device, elements, &b->x)) ||
        (!b->loss.buffer && (status = od_span_create(b->device, 1, &b->loss))))
        return status;
    return od_fill_normal(b->device, b->x, elements, 1, (uint64_t)od_member_index(b->member), 0);
}

/* A step with n images; *exposed: what it waited for the gradients' sum when all else was done. */
static od_status step(bench_member *b, int n, int all, double *exposed) {
    static const od_optim_rates sgd = {.lr = 0.05f, .momentum = 0.9f, .weight_decay = 1e-4f, .head_lr = 0.05f};
    od_status status = OD_OK;
    od_model_set_final(b->model, true);
    if ((status = od_model_step(b->model, b->loss, b->x, n, (float)n / (float)all, false)) ||
        (status = od_device_finish(b->device)))
        return status;
    const double began = od_now();
    status = od_model_reduce(b->model);
    *exposed = od_now() - began;
    if (!status)
        status = od_model_optimize(b->model, &sgd);
    return status ? status : od_device_finish(b->device);
}

/* Images/s of this member while the others wait. */
static od_status measure_alone(bench_member *b, int n, double *rate) {
    double seconds[3], unused;
    od_status status = build(b, n < 2 ? 2 : n, false);
    for (int i = -1; i < 3 && !status; i++) {
        const double began = od_now();
        status = step(b, n < 2 ? 2 : n, n < 2 ? 2 : n, &unused);
        if (i >= 0)
            seconds[i] = od_now() - began;
    }
    if (!status)
        *rate = (n < 2 ? 2 : n) / od_bench_median(seconds, 3);
    return status;
}

static od_status all_alone(bench_member *b, team_figures *f) {
    const int own = od_member_index(b->member);
    od_status status = OD_OK;
    memset(f->alone, 0, (size_t)f->count * sizeof *f->alone);
    for (int i = 0; i < f->count; i++) {
        if (i == own)
            status = measure_alone(b, b->args->batch / f->count, &f->alone[own]);
        if ((status = od_member_agree(b->member, status)))
            return status;
    }
    return od_member_sum(b->member, f->alone, (size_t)f->count);
}

static od_status divide(const bench_member *b, team_figures *f) {
    double *weights = calloc((size_t)f->count, sizeof *weights);
    od_status status = weights ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for %d members", f->count);
    if (!status && b->args->split[0])
        status = od_shares_parse(weights, b->args->split, f->count);
    else if (!status)
        memcpy(weights, f->alone, (size_t)f->count * sizeof *weights);
    if (!status && !od_shares_divide(f->shares, b->args->batch, weights, NULL, f->count))
        status = od_fail(OD_ERR_USAGE, "--batch %d is too small for %d devices", b->args->batch, f->count);
    free(weights);
    return status;
}

static od_status together(bench_member *b, team_figures *f, double *seconds) {
    const int own = od_member_index(b->member), n = f->shares[own], runs = b->args->runs;
    double exposed = 0, total = 0, worked = 0, done[2];
    od_status status = od_member_agree(b->member, build(b, n, true));
    for (int i = -2; i < runs && !status; i++) {
        float loss = 0;
        od_member_reset_waited(b->member);
        const double began = od_now();
        if ((status = step(b, n, b->args->batch, &exposed)) || (status = od_span_read(b->loss, &loss, 1)))
            break;
        const double waited = od_member_waited(b->member), own_time = od_now() - began - waited;
        done[0] = loss;
        done[1] = exposed / f->count;
        if ((status = od_member_sum(b->member, done, 2)))
            break;
        if (i < 0)
            continue;
        seconds[i] = od_now() - began;
        worked += own_time / runs;
        f->sums += waited / runs;
        total += done[1] / runs;
        f->loss = done[0];
    }
    if ((status = od_member_agree(b->member, status)))
        return status;
    memset(f->work, 0, (size_t)f->count * sizeof *f->work);
    f->work[own] = worked;
    f->exposed = total;
    f->seconds = od_bench_median(seconds, runs);
    return od_member_sum(b->member, f->work, (size_t)f->count);
}

/* The gradients of all, read, summed and written, with nothing else going on. */
static od_status reduction_alone(bench_member *b, team_figures *f) {
    const size_t count = od_model_params(b->model)->count;
    const od_span grad = od_model_get_arenas(b->model).grad;
    od_pinned *host = NULL;
    const float *sums = NULL;
    double seconds[3] = {0}, one = 1;
    od_status status = od_member_agree(b->member, od_pinned_create(b->device, count * sizeof(float), &host));
    for (int i = 0; i < 3 && !status; i++) {
        float *values = od_pinned_memory(host);
        const double began = od_now();
        if (!(status = od_span_read(grad, values, count)) &&
            !(status = od_member_reduce(b->member, values, 0, count)) &&
            !(status = od_member_reduced(b->member, &sums)) && !(status = od_span_write(grad, sums, count)))
            status = od_member_sum(b->member, &one, 1);
        seconds[i] = od_now() - began;
    }
    status = od_member_agree(b->member, status);
    od_pinned_release(host);
    f->reduction = od_bench_median(seconds, 3);
    f->bytes = (double)count * sizeof(float);
    return status;
}

/* ---- figures ---------------------------------------------------------------------------------------------------- */

enum { NAME = 96 };

/* names (count, NAME): of the members' devices, in all of them. */
static od_status share_names(const bench_member *b, char *names) {
    char own[NAME] = "";
    (void)snprintf(own, sizeof own, "%s: %.60s", b->info->id, b->info->name);
    return od_member_exchange(b->member, names, own, NAME);
}

static void print_figures(const step_args *a, const team_figures *f, const char *names, double sum) {
    const double hidden = f->reduction > 0 ? 100 * (1 - fmin(f->exposed / f->reduction, 1)) : 0;
    printf("%d devices in %d process%s, width %d, batch %d\n", f->count, od_world_ranks(),
           od_world_ranks() > 1 ? "es" : "", a->width, a->batch);
    for (int i = 0; i < f->count; i++)
        printf("  %-64s %8.1f images/s alone (%d images), %d of the batch, works %.4f s of a step\n", names + i * NAME,
               f->alone[i], a->batch / f->count, f->shares[i], f->work[i]);
    printf("  together: %.4f s a step, %.1f images/s, %.0f %% of the sum of %.1f\n", f->seconds, a->batch / f->seconds,
           100 * a->batch / f->seconds / sum, sum);
    printf("  sums over devices: %.4f s of a step, waiting for the slowest included\n", f->sums);
    printf(
        "  gradients: %.1f MB a step; their sum takes %.4f s by itself, a step waits %.4f s for it (%.0f %% hidden)\n",
        f->bytes / 1e6, f->reduction, f->exposed, hidden);
}

static od_status json_figures(const step_args *a, const team_figures *f, const char *names, double sum) {
    json_t *devices = json_array();
    for (int i = 0; i < f->count; i++)
        (void)json_array_append_new(devices,
                                    json_pack("{s:s, s:f, s:i, s:f}", "device", names + i * NAME, "images_per_s_alone",
                                              f->alone[i], "share", f->shares[i], "work_seconds", f->work[i]));
    json_t *document = json_pack(
        "{s:o, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s}", "devices", devices, "processes",
        od_world_ranks(), "width", a->width, "batch", a->batch, "seconds", f->seconds, "images_per_s",
        a->batch / f->seconds, "efficiency", a->batch / f->seconds / sum, "sum_seconds", f->sums, "gradient_bytes",
        f->bytes, "reduction_seconds", f->reduction, "reduction_exposed_seconds", f->exposed, "overlapped",
        f->reduction > 0 ? 1 - fmin(f->exposed / f->reduction, 1) : 0.0, "mpi", od_world_version());
    od_status status = document ? od_json_print(document) : od_fail(OD_ERR_MEMORY, "no memory for a JSON document");
    json_decref(document);
    return status;
}

static od_status run(bench_member *b) {
    team_figures f = {.count = od_member_count(b->member)};
    const size_t count = (size_t)f.count;
    const od_device_options options = {.family = (od_family)b->args->kernels, .processes = (unsigned)od_world_here()};
    double *seconds = calloc((size_t)b->args->runs, sizeof *seconds), sum = 0;
    char *names = calloc(count, NAME);
    od_status status = OD_OK;
    f.alone = calloc(count, sizeof *f.alone);
    f.work = calloc(count, sizeof *f.work);
    f.shares = calloc(count, sizeof *f.shares);
    if (!seconds || !names || !f.alone || !f.work || !f.shares)
        status = od_fail(OD_ERR_MEMORY, "no memory for figures of %d devices", f.count);
    if (!status)
        status = od_device_open(b->info->id, &options, &b->device);
    if ((status = od_member_agree(b->member, status)) || (status = all_alone(b, &f)) ||
        (status = od_member_agree(b->member, divide(b, &f))))
        goto out;
    if ((status = together(b, &f, seconds)))
        goto out;
    if ((status = reduction_alone(b, &f)) || (status = share_names(b, names)))
        goto out;
    if (!isfinite(f.loss)) {
        status = od_fail(OD_ERR_NUMERIC, "the loss is %g", f.loss);
        goto out;
    }
    for (int i = 0; i < f.count; i++)
        sum += f.alone[i];
    if (od_member_leads(b->member) && !b->args->json)
        print_figures(b->args, &f, names, sum);
    else if (od_member_leads(b->member))
        status = json_figures(b->args, &f, names, sum);
out:
    od_model_destroy(b->model);
    od_buffer_release(b->x.buffer);
    od_buffer_release(b->loss.buffer);
    od_device_close(b->device);
    free(seconds);
    free(names);
    free(f.alone);
    free(f.work);
    free(f.shares);
    return status;
}

static od_status act(od_member *m, void *context) {
    bench_member *b = context;
    b->member = m;
    return run(b);
}

od_status od_bench_team(const step_args *a, const od_device_info *const *infos, int count) {
    bench_member *members = calloc((size_t)count, sizeof *members);
    od_team *team = NULL;
    od_status status =
        members ? od_team_create(&team, count) : od_fail(OD_ERR_MEMORY, "no memory for %d devices", count);
    for (int i = 0; i < count && members; i++)
        members[i] = (bench_member){.args = a, .info = infos[i]};
    if (!status)
        status = od_team_run(team, act, members, sizeof *members);
    od_team_destroy(team);
    free(members);
    return status;
}
