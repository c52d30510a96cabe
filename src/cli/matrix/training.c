/* A short real training run, from files on disk to a checkpoint, twice: its losses must repeat bit for bit, and follow
 * a stored curve. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "cli/matrix/run.h"
#include "offdiag/train.h"
#include "train/config.h"

enum { TRAIN_IMAGES = 256, TEST_IMAGES = 64, SIDE = 28, PIXELS = SIDE * SIDE, MAX_STEPS = 16 };

/* Losses that the `ref` kernels give on PoCL; other devices and families stay within 6e-7 (cnn4) and 4e-4 (resnet18,
 * where it has grown from 5e-7 over five steps) of them. (A step of these kernels agrees with double-precision PyTorch
 * within 5e-5, see tests/test_golden.c.) */
static const struct {
    const char *name, *encoder;
    int width, downsample, batch, steps;
    od_method method;
    od_head_kind head;
    od_loss_kind loss;
    bool quick;
    double tolerance; /* of a step after the first */
    double curve[MAX_STEPS];
} runs[] = {
    {"cnn4, simsiam, offdiag head",
     "cnn4",
     8,
     2,
     32,
     10,
     OD_SIMSIAM,
     OD_HEAD_OFFDIAG,
     OD_LOSS_NORMALIZED,
     true,
     2e-5,
     {2.12234998, 1.83162999, 2.0135603, 1.85789084, 1.96826327, 1.64772928, 1.93112504, 1.80894768, 1.98768163,
      1.97121572}},
    {"resnet18, byol, mlp head",
     "resnet18",
     4,
     2,
     32,
     5,
     OD_BYOL,
     OD_HEAD_MLP,
     OD_LOSS_COSINE,
     false,
     2e-3,
     {0.0233730488, 0.0749165565, -0.00788589846, 0.0257367883, 0.0345357955}},
};
enum { RUNS = sizeof runs / sizeof *runs };
/* Relative to losses above 1 (normalised loss), absolute below (a cosine loss passes through 0). */
#define FIRST_TOLERANCE 1e-5 /* of the first step */

/* ---- data -------------------------------------------------------------------------------------------------------- */

static void put_big_endian(unsigned char *to, uint32_t v) {
    for (int i = 0; i < 4; i++)
        to[i] = (unsigned char)(v >> (24 - 8 * i));
}

/* A class is a direction of stripes; phase and noise are an image's own. Integers only: the same bytes everywhere. */
static void draw_image(unsigned char *pixels, int label, const float *noise) {
    const int phase = (int)(noise[0] * 16);
    for (int i = 0; i < PIXELS; i++) {
        const int along = (label - 4) * (i % SIDE) + (5 - label / 2) * (i / SIDE) + phase;
        pixels[i] = (unsigned char)(40 + 8 * (along & 15) + (int)(noise[i] * 64));
    }
}

/* Two IDX files: images and labels. */
static od_status write_split(const char *dir, const char *images_name, const char *labels_name, int n, uint64_t seed) {
    const size_t image_bytes = 16 + (size_t)n * PIXELS, label_bytes = 8 + (size_t)n;
    unsigned char *images = calloc(1, image_bytes), *labels = calloc(1, label_bytes);
    float *noise = malloc(PIXELS * sizeof *noise);
    char *paths[2] = {od_path_join(dir, images_name), od_path_join(dir, labels_name)};
    od_status status = OD_OK;
    if (!images || !labels || !noise || !paths[0] || !paths[1]) {
        status = od_fail(OD_ERR_MEMORY, "no memory for %d images", n);
        goto out;
    }
    const uint32_t header[] = {0x803, (uint32_t)n, SIDE, SIDE};
    for (int i = 0; i < 4; i++)
        put_big_endian(images + 4 * i, header[i]);
    put_big_endian(labels, 0x801);
    put_big_endian(labels + 4, (uint32_t)n);
    for (int i = 0; i < n; i++) {
        od_rng_fill_uniform(noise, PIXELS, 0.0f, 1.0f, seed, (uint64_t)i);
        labels[8 + i] = (unsigned char)(i % 10);
        draw_image(images + 16 + (size_t)i * PIXELS, i % 10, noise);
    }
    if (!(status = od_file_write_atomic(paths[0], images, image_bytes)))
        status = od_file_write_atomic(paths[1], labels, label_bytes);
out:
    free(paths[0]);
    free(paths[1]);
    free(noise);
    free(labels);
    free(images);
    return status;
}

static od_status write_data(const char *dir) {
    od_status status = od_dir_make(dir);
    if (!status)
        status = write_split(dir, "train-images-idx3-ubyte", "train-labels-idx1-ubyte", TRAIN_IMAGES, 1);
    if (!status)
        status = write_split(dir, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", TEST_IMAGES, 2);
    return status;
}

/* ---- runs -------------------------------------------------------------------------------------------------------- */

static int index_of(const char *const *names, const char *name) {
    int i = 0;
    while (names[i] && strcmp(names[i], name) != 0)
        i++;
    return i;
}

static void configure(od_train_config *c, int run, const char *spec, od_family family, const char *scratch, int again) {
    od_train_config_default(c);
    (void)snprintf(c->dataset, sizeof c->dataset, "mnist");
    (void)snprintf(c->data, sizeof c->data, "%s/data", scratch);
    (void)snprintf(c->out, sizeof c->out, "%s/%s-%s-%d", scratch, runs[run].encoder, od_family_name(family), again);
    (void)snprintf(c->device, sizeof c->device, "%s", spec);
    c->kernels = (int)family;
    c->downsample = runs[run].downsample;
    c->augment = index_of(od_augment_names, "simsiam");
    c->encoder = index_of(od_encoder_names, runs[run].encoder);
    c->width = runs[run].width;
    c->method = runs[run].method;
    c->head = runs[run].head;
    c->loss = runs[run].loss;
    c->proj_hidden = 32;
    c->proj_dim = 16;
    c->head_hidden = 16;
    c->batch = runs[run].batch;
    c->steps = runs[run].steps;
    c->warmup = 2;
    c->head_lr = 1;
    c->lr = 0.002;
    c->seed = 7;
    c->knn_k = 5;
    c->eval_every = 0;
    c->tensorboard = false;
    c->quiet = true;
}

/* The losses that a run left in its metrics. */
static od_status read_losses(const char *out, int steps, double *losses) {
    char *path = od_path_join(out, "metrics.jsonl"), *text = NULL, *rest = NULL;
    od_status status = path ? od_file_read(path, 1 << 20, &text, NULL) : od_fail(OD_ERR_MEMORY, "no memory for a path");
    int found = 0;
    for (char *line = status ? NULL : strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *object = json_loads(line, 0, NULL);
        const char *event = json_string_value(json_object_get(object, "event"));
        if (event && strcmp(event, "step") == 0 && found < steps)
            losses[found++] = json_number_value(json_object_get(object, "loss"));
        json_decref(object);
    }
    if (!status && found != steps)
        status = od_fail(OD_ERR_FORMAT, "%s: %d of %d steps", path, found, steps);
    free(text);
    free(path);
    return status;
}

static od_status train_twice(int run, const char *spec, od_family family, const char *scratch,
                             double losses[2][MAX_STEPS], od_train_result *result) {
    od_status status = OD_OK;
    for (int again = 0; again < 2 && !status; again++) {
        od_train_config config;
        configure(&config, run, spec, family, scratch, again);
        if (!(status = od_train(&config, result)) && result->interrupted)
            status = od_fail(OD_ERR_INTERRUPTED, "interrupted");
        if (!status)
            status = read_losses(config.out, runs[run].steps, losses[again]);
    }
    return status;
}

/* What is wrong with the run, in words; "" if nothing is. *largest: of all steps. */
static void judge(int run, double losses[2][MAX_STEPS], double *largest, char *why, size_t size) {
    why[0] = '\0';
    *largest = 0;
    for (int i = 0; i < runs[run].steps && !why[0]; i++) {
        const double expected = runs[run].curve[i], off = fabs(losses[0][i] - expected) / fmax(fabs(expected), 1);
        const double tolerance = i ? runs[run].tolerance : FIRST_TOLERANCE;
        *largest = fmax(*largest, off);
        if (losses[0][i] != losses[1][i])
            (void)snprintf(why, size, "step %d: two runs differ, loss %.9g and %.9g", i + 1, losses[0][i],
                           losses[1][i]);
        else if (!(off <= tolerance))
            (void)snprintf(why, size, "step %d: loss %.9g, not %.9g (tolerance %g)", i + 1, losses[0][i], expected,
                           tolerance);
    }
}

static json_t *curve_json(const double *losses, int steps) {
    json_t *array = json_array();
    for (int i = 0; i < steps; i++)
        (void)json_array_append_new(array, isfinite(losses[i]) ? json_real(losses[i]) : json_null());
    return array;
}

od_status od_matrix_train(const char *spec, od_family family, bool quick, const char *scratch, json_t **out) {
    char data[1000];
    (void)snprintf(data, sizeof data, "%s/data", scratch);
    json_t *rows = json_array();
    od_status status = rows ? write_data(data) : od_fail(OD_ERR_MEMORY, "no memory for JSON");
    for (int run = 0; run < RUNS && !status; run++) {
        double losses[2][MAX_STEPS] = {{0}}, largest = 0;
        od_train_result result = {0};
        char why[320];
        if (quick && !runs[run].quick)
            continue;
        od_status failed = train_twice(run, spec, family, scratch, losses, &result);
        if (failed)
            (void)snprintf(why, sizeof why, "%.300s", od_error_message());
        else
            judge(run, losses, &largest, why, sizeof why);
        json_t *row = json_pack(
            "{s:s, s:s, s:i, s:o, s:f, s:f, s:f, s:f, s:s*}", "run", runs[run].name, "family", od_family_name(family),
            "steps", runs[run].steps, "losses", curve_json(losses[0], runs[run].steps), "largest_difference",
            isfinite(largest) ? largest : 1e9, "tolerance_first", FIRST_TOLERANCE, "tolerance", runs[run].tolerance,
            "knn", isfinite(result.knn) ? result.knn : -1, "failed", why[0] ? why : NULL);
        if (!row || json_array_append_new(rows, row))
            status = od_fail(OD_ERR_MEMORY, "no memory for JSON");
    }
    if (status)
        json_decref(rows);
    *out = status ? NULL : rows;
    return status;
}
