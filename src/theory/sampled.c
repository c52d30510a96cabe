/* Sampled training on a device: all seeds at once, in launches of many steps. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "offdiag/device.h"
#include "theory/theory.h"

/* How seeds lie in work-items: lanes of a vector on CPUs, neighbouring work-items on GPUs. */
typedef struct layout {
    int vector, team;
} layout;

typedef struct job {
    const od_theory_config *c;
    od_device *device;
    od_kernel *kernel;
    layout shape;
    bool projected;
    size_t d, lanes, groups, state_slots, scratch_slots, columns;
    size_t row_room; /* rows that the buffer holds */
    od_buffer *state, *rows, *scratch, *counts, *features, *strengths;
    float *host; /* (row_room, groups, columns, lanes), or the state */
} job;

static size_t sample_slots(const od_theory_config *c, size_t d) {
    size_t noisy = c->noise_everywhere ? d : d - (size_t)c->features;
    size_t m = (size_t)c->neurons, patches = (size_t)(c->patches - c->feature_patches);
    return (patches * noisy + 3) / 4 * 4 + patches * m + 2 * m + (size_t)c->features + 1;
}

static od_status get_kernel(job *j) {
    const od_theory_config *c = j->c;
    char options[256];
    snprintf(options, sizeof options,
             "-DV=%d -DTEAM=%d -DM=%d -DK=%d -DQ=%d -DLO=%d -DPROJECTED=%d -DSIGNS=%d -DBATCH_NORM=%d "
             "-DSTOP_GRADIENT=%d -DDETACH_STD=%d -DTRAIN_HEAD=%d",
             j->shape.vector, j->shape.team, c->neurons, c->features, c->degree, c->noise_everywhere ? 0 : c->features,
             j->projected, c->plain_batch ? 1 : 2, !c->no_bn, !c->no_stopgrad, c->detach_std && !c->no_bn,
             c->head == OD_THEORY_NONE      ? 0
             : c->head == OD_THEORY_OFFDIAG ? 1
                                            : 2);
    return od_kernel_get(j->device, "theory", options, "theory_steps", &j->kernel);
}

/* A number below thresholds[i] with the share of the first i + 1 probabilities, of 2^32. */
static void thresholds(uint32_t *out, const double *probabilities, int count) {
    double sum = 0;
    for (int i = 0; i < count; i++) {
        sum += probabilities[i];
        out[i] = (uint32_t)fmin(ldexp(sum, 32), UINT32_MAX);
    }
}

static od_status upload_tables(job *j) {
    const od_theory_config *c = j->c;
    size_t counts_size = (size_t)c->feature_patches;
    double *chances = malloc((counts_size + 1) * sizeof *chances);
    uint32_t *counts = malloc(counts_size * sizeof *counts), features[OD_THEORY_FEATURES];
    double even[OD_THEORY_FEATURES];
    float strengths[OD_THEORY_FEATURES];
    od_status status = OD_OK;
    if (!chances || !counts) {
        status = od_fail(OD_ERR_MEMORY, "no memory for %zu patches", counts_size);
        goto out;
    }
    theory_patch_counts(c, chances);
    thresholds(counts, chances, c->feature_patches);
    for (int l = 0; l < c->features; l++) {
        even[l] = 1. / c->features;
        strengths[l] = (float)c->strength[l];
    }
    thresholds(features, even, c->features);
    (void)((status = od_buffer_create(j->device, counts_size * 4, &j->counts)) ||
           (status = od_buffer_create(j->device, sizeof features, &j->features)) ||
           (status = od_buffer_create(j->device, sizeof strengths, &j->strengths)) ||
           (status = od_buffer_write(j->counts, 0, counts, counts_size * 4)) ||
           (status = od_buffer_write(j->features, 0, features, (size_t)c->features * 4)) ||
           (status = od_buffer_write(j->strengths, 0, strengths, (size_t)c->features * 4)));
out:
    free(chances);
    free(counts);
    return status;
}

/* The places of a seed in [group][slot][lane]. */
static float *lane_of(const job *j, float *base, size_t slots, size_t seed) {
    return base + seed / j->lanes * slots * j->lanes + seed % j->lanes;
}

static od_status upload_state(job *j, const od_theory_state *starts) {
    const od_theory_config *c = j->c;
    size_t m = (size_t)c->neurons, seeds = (size_t)c->seeds, known = (size_t)c->features + m;
    memset(j->host, 0, j->groups * j->state_slots * j->lanes * sizeof *j->host);
    for (size_t i = 0; i < j->groups * j->lanes; i++) { /* lanes without a seed train a copy of the last start */
        const od_theory_state *s = &starts[i < seeds ? i : seeds - 1];
        float *to = lane_of(j, j->host, j->state_slots, i);
        for (size_t r = 0; r < m; r++) {
            for (size_t l = 0; l < known && l < j->d; l++)
                to[(r * j->d + l) * j->lanes] = (float)s->w[r][l];
            for (size_t q = 0; q < m; q++)
                to[(m * j->d + r * m + q) * j->lanes] = (float)s->head[r][q];
        }
    }
    return od_buffer_write(j->state, 0, j->host, j->groups * j->state_slots * j->lanes * sizeof *j->host);
}

static od_status prepare(job *j, const od_theory_state *starts) {
    const od_theory_config *c = j->c;
    size_t m = (size_t)c->neurons, row_floats, outside = (size_t)c->dimension;
    od_family family = od_device_family(j->device);
    j->shape = family == OD_FAMILY_CPU ? (layout){16, 1} : family == OD_FAMILY_GPU ? (layout){1, 64} : (layout){1, 1};
    j->lanes = (size_t)j->shape.vector * (size_t)j->shape.team;
    j->groups = ((size_t)c->seeds + j->lanes - 1) / j->lanes;
    /* Bartlett's matrix wants as many further dimensions as neurons. */
    j->projected = c->draw == OD_THEORY_PROJECTED && outside >= (size_t)c->features + 2 * m;
    j->d = j->projected ? (size_t)c->features + m : (size_t)c->dimension;
    j->columns = od_theory_columns(c);
    j->state_slots = m * j->d + m * m + 1;
    j->scratch_slots = (size_t)c->batch * sample_slots(c, j->d) + m * j->d;
    row_floats = j->groups * j->columns * j->lanes;
    j->row_room = ((size_t)16 << 20) / row_floats + 1;
    size_t state_floats = j->groups * j->state_slots * j->lanes, host_floats = j->row_room * row_floats;
    j->host = malloc((host_floats > state_floats ? host_floats : state_floats) * sizeof *j->host);
    if (!j->host)
        return od_fail(OD_ERR_MEMORY, "no memory for %d seeds", c->seeds);
    od_status status = OD_OK;
    (void)((status = get_kernel(j)) || (status = upload_tables(j)) ||
           (status = od_buffer_create(j->device, state_floats * 4, &j->state)) ||
           (status = od_buffer_create(j->device, host_floats * 4, &j->rows)) ||
           (status = od_buffer_create(j->device, j->groups * j->scratch_slots * j->lanes * 4, &j->scratch)) ||
           (status = upload_state(j, starts)));
    return status;
}

static od_status launch(job *j, uint64_t first, uint64_t steps) {
    const od_theory_config *c = j->c;
    int outside = j->projected ? c->dimension - c->features - c->neurons : 0;
    return OD_LAUNCH(j->kernel, OD_RANGE1(j->groups * (size_t)j->shape.team, (size_t)j->shape.team), OD_BUF(j->state),
                     OD_BUF(j->rows), OD_BUF(j->scratch), OD_BUF(j->counts), OD_BUF(j->features), OD_BUF(j->strengths),
                     OD_U32((uint32_t)first), OD_U32((uint32_t)steps), OD_U32((uint32_t)c->rows),
                     OD_U32((uint32_t)c->seed), OD_U32((uint32_t)(c->seed >> 32)), OD_I32((int)j->d), OD_I32(c->batch),
                     OD_I32(c->patches / 2), OD_I32(c->feature_patches), OD_I32(c->patches - c->feature_patches),
                     OD_F32((float)c->noise), OD_F32((float)c->eta), OD_F32((float)c->eta_head), OD_I32(outside));
}

/* `count` rows from the device to the paths, from row `at` on. */
static od_status fetch_rows(job *j, size_t at, size_t count, size_t rows, double *paths) {
    size_t row_floats = j->groups * j->columns * j->lanes;
    od_status status =
        count ? od_buffer_read(j->rows, 0, j->host, count * row_floats * 4) : od_device_finish(j->device);
    for (size_t n = 0; n < count && !status; n++)
        for (size_t i = 0; i < (size_t)j->c->seeds; i++) {
            const float *from = lane_of(j, j->host + n * row_floats, j->columns, i);
            for (size_t k = 0; k < j->columns; k++)
                paths[(i * rows + at + n) * j->columns + k] = from[k * j->lanes];
        }
    return status;
}

/* The state after the last step is the last row, with the loss of the batch before it. */
static od_status fetch_last(job *j, size_t rows, double *paths) {
    const od_theory_config *c = j->c;
    size_t m = (size_t)c->neurons, k = (size_t)c->features;
    od_status status = od_buffer_read(j->state, 0, j->host, j->groups * j->state_slots * j->lanes * 4);
    for (size_t i = 0; i < (size_t)c->seeds && !status; i++) {
        const float *from = lane_of(j, j->host, j->state_slots, i);
        double *row = paths + ((i + 1) * rows - 1) * j->columns;
        row[0] = from[(j->state_slots - 1) * j->lanes];
        for (size_t r = 0; r < m; r++) {
            double square = 0;
            for (size_t l = 0; l < j->d; l++) {
                double x = from[(r * j->d + l) * j->lanes];
                square += x * x;
                if (l < k)
                    row[1 + r * k + l] = x;
            }
            row[1 + m * k + r] = sqrt(square);
            for (size_t q = 0; q < m; q++)
                row[1 + m * (k + 1 + r) + q] = from[(m * j->d + r * m + q) * j->lanes];
        }
    }
    return status;
}

static double now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Launches of about 50 ms: long enough to hide their cost, short enough for devices with a watchdog. */
static od_status train(job *j, const double *steps, size_t rows, double *paths) {
    od_status status = OD_OK;
    size_t row = 0;
    uint64_t chunk = 1, last = j->c->steps;
    for (uint64_t step = 0; step < last && !status;) {
        uint64_t end = step + chunk < last ? step + chunk : last;
        size_t count = 0;
        while (row + count < rows - 1 && steps[row + count] < (double)end && count < j->row_room)
            count++;
        if (row + count < rows - 1 && steps[row + count] < (double)end)
            end = (uint64_t)steps[row + count];
        double began = now();
        if ((status = launch(j, step, end - step)) || (status = fetch_rows(j, row, count, rows, paths)))
            break;
        double each = (now() - began) / (double)(end - step);
        chunk = (uint64_t)fmin(fmax(0.05 / fmax(each, 1e-9), 1), 2 * (double)chunk);
        row += count;
        step = end;
    }
    return status ? status : fetch_last(j, rows, paths);
}

od_status theory_sampled_on(od_device *device, const od_theory_config *c, const od_theory_state *starts,
                            const double *steps, size_t rows, double *paths, double *seconds) {
    job j = {.c = c, .device = device};
    od_status status;
    if ((status = prepare(&j, starts)) || (status = od_device_finish(j.device)))
        goto out;
    double began = now();
    status = train(&j, steps, rows, paths);
    *seconds = now() - began;
out:
    free(j.host);
    od_buffer_release(j.state);
    od_buffer_release(j.rows);
    od_buffer_release(j.scratch);
    od_buffer_release(j.counts);
    od_buffer_release(j.features);
    od_buffer_release(j.strengths);
    return status;
}

od_status theory_sampled(const od_theory_config *c, const od_theory_state *starts, const double *steps, size_t rows,
                         double *paths, double *seconds, char name[256]) {
    const od_device_options options = {.family = c->kernels};
    od_device *device = NULL;
    od_status status = od_device_open(c->device[0] ? c->device : NULL, &options, &device);
    if (status)
        return status;
    snprintf(name, 256, "%s", od_device_get_info(device)->name);
    status = theory_sampled_on(device, c, starts, steps, rows, paths, seconds);
    od_device_close(device);
    return status;
}
