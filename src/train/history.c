#include "train/history.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/safetensors.h"

const char *const od_history_keys[OD_HISTORY_KEYS] = {"epoch",        "step",          "loss",
                                                      "knn",          "online_linear", "effective_rank",
                                                      "feature_rank", "z_std",         "mean_correlation",
                                                      "offdiag_norm", "images_per_s"};

enum { LINE_MAX_BYTES = 1 << 18 };
static const double largest = 1e30; /* nothing sound is larger, and charts overflow */

/* ---- lines ------------------------------------------------------------------------------------------------------ */

/* Room for one more row of `size` bytes: of POINTS rows every second one goes, the last stays. Returns the row's
 * index. */
static size_t room(void *rows, size_t *count, size_t most, size_t size) {
    char *row = rows;
    if (*count == most) {
        size_t kept = 0;
        for (size_t i = 1; i < *count; i += 2)
            memmove(row + kept++ * size, row + i * size, size);
        *count = kept;
    }
    return (*count)++;
}

static double number(const json_t *line, const char *key) {
    const json_t *value = json_object_get(line, key);
    double x = json_is_number(value) ? json_number_value(value) : NAN;
    return fabs(x) <= largest ? x : NAN;
}

/* Steps since the last kept point are averaged into the next one, of `width` steps; the width doubles when the points
 * are full. */
typedef struct binning {
    double sum;
    size_t count, width;
} binning;

static void add_loss(od_history *h, binning *b, double step, double loss) {
    if (!isfinite(loss))
        return;
    b->sum += loss;
    if (++b->count < b->width)
        return;
    if (h->loss_count == OD_HISTORY_POINTS) {
        for (size_t i = 0; i < OD_HISTORY_POINTS / 2; i++) {
            h->losses[i][0] = h->losses[2 * i + 1][0];
            h->losses[i][1] = (h->losses[2 * i][1] + h->losses[2 * i + 1][1]) / 2;
        }
        h->loss_count /= 2;
        b->width *= 2;
        return; /* the present point becomes as wide as the others first */
    }
    double *point = h->losses[h->loss_count++];
    point[0] = step;
    point[1] = b->sum / (double)b->count;
    b->sum = 0;
    b->count = 0;
}

static void add_epoch(od_history *h, const json_t *line) {
    double *row = h->epochs[room(h->epochs, &h->epoch_count, OD_HISTORY_POINTS, sizeof *h->epochs)];
    for (int i = 0; i < OD_HISTORY_KEYS; i++)
        row[i] = number(line, od_history_keys[i]);
    memcpy(h->last, row, sizeof h->last);
    h->offdiag_peak = fmax(h->offdiag_peak, row[OD_HISTORY_OFFDIAG]);
}

static bool add_spectrum(od_history *h, const json_t *line, double step) {
    const json_t *values = json_object_get(line, "log_singular");
    double count = number(line, "count");
    size_t kept = json_array_size(values);
    if (kept < 1 || kept > OD_HISTORY_SPECTRUM || !(count >= (double)kept) || count > 1e6)
        return false;
    for (size_t i = 0; i < kept; i++)
        if (!json_is_number(json_array_get(values, i)) || fabs(json_number_value(json_array_get(values, i))) > 1e3)
            return false;
    od_spectrum *s = &h->spectra[room(h->spectra, &h->spectrum_count, OD_HISTORY_SPECTRA, sizeof *h->spectra)];
    *s = (od_spectrum){.epoch = number(line, "epoch"), .step = step, .count = (int)count, .kept = (int)kept};
    for (size_t i = 0; i < kept; i++)
        s->log_singular[i] = (float)json_number_value(json_array_get(values, i));
    return true;
}

/* Where the last step of this kind of line is kept. */
static double *last_step_of(const char *event, double last[3]) {
    return strcmp(event, "step") == 0 ? &last[0] : strcmp(event, "epoch") == 0 ? &last[1] : &last[2];
}

/* false: nothing that a run writes. Steps of one kind of line must rise. */
static bool add_line(od_history *h, binning *b, double last[3], const json_t *line) {
    const char *event = json_string_value(json_object_get(line, "event"));
    double step = json_is_integer(json_object_get(line, "step")) ? number(line, "step") : NAN;
    if (!event || !(step >= 0))
        return false;
    if (strcmp(event, "start") == 0) {
        h->knn_before = number(line, "knn");
        return true;
    }
    double *before = last_step_of(event, last);
    if (step <= *before)
        return false;
    if (strcmp(event, "step") == 0)
        add_loss(h, b, step, number(line, "loss"));
    else if (strcmp(event, "epoch") == 0)
        add_epoch(h, line);
    else if (strcmp(event, "spectrum") != 0)
        return true; /* of a later version */
    else if (!add_spectrum(h, line, step))
        return false;
    *before = step;
    h->last_step = fmax(h->last_step, step);
    return true;
}

static void read_lines(od_history *h, FILE *file, char *text) {
    binning b = {.width = 1};
    double last[3] = {-1, -1, -1};
    bool inside = false;                    /* a line that is longer than any of ours */
    char *mark = text + LINE_MAX_BYTES - 2; /* the last character, of a line that fills the buffer */
    for (*mark = 0; fgets(text, LINE_MAX_BYTES, file); *mark = 0) {
        bool rest = inside;
        inside = *mark && *mark != '\n';
        json_t *line = rest || inside ? NULL : json_loadb(text, strlen(text), 0, NULL);
        if (!rest && (!line || !add_line(h, &b, last, line)))
            h->skipped++;
        json_decref(line);
    }
    if (b.count && h->loss_count < OD_HISTORY_POINTS) {
        double *point = h->losses[h->loss_count++];
        point[0] = last[0];
        point[1] = b.sum / (double)b.count;
    }
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static od_status read_metrics(od_history *h, const char *path) {
    struct stat info;
    od_status status = OD_OK;
    char *text = malloc(LINE_MAX_BYTES);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    FILE *file = fd >= 0 ? fdopen(fd, "r") : NULL;
    if (!text)
        status = od_fail(OD_ERR_MEMORY, "%s: no memory", path);
    else if (!file)
        status = od_fail(OD_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    else if (fstat(fd, &info) || !S_ISREG(info.st_mode))
        status = od_fail(OD_ERR_FORMAT, "%s: expected a regular file", path);
    else
        read_lines(h, file, text);
    if (file)
        (void)fclose(file);
    else if (fd >= 0)
        (void)close(fd);
    free(text);
    return status;
}

static void read_config(od_history *h, const char *path) {
    json_t *document = NULL;
    if (od_json_read(path, &document))
        return;
    json_t *options = json_object_get(document, "options"), *about = json_object_get(document, "run");
    h->options = json_is_object(options) ? json_incref(options) : NULL;
    h->about = json_is_object(about) ? json_incref(about) : NULL;
    json_decref(document);
}

od_status od_history_read(od_history *h, const char *run) {
    char *metrics = od_path_join(run, "metrics.jsonl"), *config = od_path_join(run, "config.json");
    od_status status = OD_OK;
    *h = (od_history){.knn_before = NAN, .offdiag_peak = NAN};
    for (int i = 0; i < OD_HISTORY_KEYS; i++)
        h->last[i] = NAN;
    h->losses = malloc(OD_HISTORY_POINTS * sizeof *h->losses);
    h->epochs = malloc(OD_HISTORY_POINTS * sizeof *h->epochs);
    h->spectra = malloc(OD_HISTORY_SPECTRA * sizeof *h->spectra);
    if (!metrics || !config || !h->losses || !h->epochs || !h->spectra)
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for its history", run);
    else if (!(status = read_metrics(h, metrics)))
        read_config(h, config);
    if (status)
        od_history_free(h);
    free(metrics);
    free(config);
    return status;
}

void od_history_free(od_history *h) {
    json_decref(h->options);
    json_decref(h->about);
    free(h->losses);
    free(h->epochs);
    free(h->spectra);
    *h = (od_history){0};
}

const char *od_history_option(const od_history *h, const char *key) {
    const char *text = json_string_value(json_object_get(h->options, key));
    return text ? text : "";
}

od_status od_history_head(float **w, int *d, const char *run) {
    char *path = od_path_join(run, "checkpoint.safetensors");
    od_safetensors *file = NULL;
    float *stored = NULL;
    od_status status = OD_OK;
    *w = NULL;
    if (!path)
        return od_fail(OD_ERR_MEMORY, "%s: no memory for a path", run);
    if (access(path, F_OK) || (status = od_safetensors_open(path, &file)))
        goto out;
    const od_tensor *t = od_safetensors_find(file, "predictor.V");
    t = t ? t : od_safetensors_find(file, "predictor.weight");
    if (!t || t->dtype != OD_F32 || t->rank != 2 || t->shape[0] != t->shape[1] || t->shape[0] < 1 ||
        t->shape[0] > 1 << 14)
        goto out;
    size_t side = t->shape[0];
    stored = malloc(t->bytes); /* (outputs, inputs) */
    *w = malloc(t->bytes);
    if (!stored || !*w) {
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for a head of %zux%zu", path, side, side);
        goto out;
    }
    if ((status = od_safetensors_read(file, t, stored)))
        goto out;
    for (size_t i = 0; i < side * side; i++)
        (*w)[i] = stored[i % side * side + i / side];
    *d = (int)side;
out:
    if (status) {
        free(*w);
        *w = NULL;
    }
    od_safetensors_close(file);
    free(stored);
    free(path);
    return status;
}
