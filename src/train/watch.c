#include "train/watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/config.h"
#include "train/tensorboard.h"

enum { VIEW_COLUMNS = 8, VIEW_ROWS = 2, GAP = 2, HEAD_CELLS = 256, HEAD_PIXELS = 256 };

/* A disk that is full, or a folder that went away, is no reason to lose a run. */
static void wrote(od_trainer *t, od_status status) {
    if (!status)
        return;
    od_say(t, "TensorBoard events end here: %s", od_error_message());
    od_tensorboard_close(t->record->tensorboard);
    t->record->tensorboard = NULL;
}

od_status od_watch_open(od_trainer *t) {
    if (!t->info.config.tensorboard)
        return OD_OK;
    od_status status = od_tensorboard_open(&t->record->tensorboard, t->record->run.dir, t->info.progress.step);
    if (status == OD_ERR_UNSUPPORTED) {
        od_say(t, "%s", od_error_message());
        return OD_OK;
    }
    return status ? od_fail_in(status, "TensorBoard events (--tensorboard=false: none): ") : OD_OK;
}

void od_watch_flush(od_trainer *t) {
    if (t->record->tensorboard)
        wrote(t, od_tensorboard_flush(t->record->tensorboard));
}

/* ---- scalars ---------------------------------------------------------------------------------------------------- */

void od_watch_start(od_trainer *t, double knn) {
    const od_scalar scalars[] = {{"eval/knn", knn}};
    if (t->record->tensorboard)
        wrote(t, od_tensorboard_scalars(t->record->tensorboard, 0, scalars, 1));
}

void od_watch_step(od_trainer *t, uint64_t step, double loss, const od_optim_rates *rates) {
    const od_scalar scalars[] = {{"train/loss", loss}, {"train/lr", rates->lr}, {"train/head_lr", rates->head_lr}};
    if (t->record->tensorboard)
        wrote(t, od_tensorboard_scalars(t->record->tensorboard, step, scalars, sizeof scalars / sizeof *scalars));
}

static void write_epoch(od_trainer *t, const od_epoch *e) {
    const od_scalar scalars[] = {
        {"epoch/loss", e->loss},
        {"eval/knn", e->knn},
        {"eval/feature_rank", e->feature_rank},
        {"eval/online_linear", e->online},
        {"train/online_linear", e->online_train},
        {"collapse/effective_rank", e->collapse.effective_rank},
        {"collapse/z_std", e->collapse.z_std},
        {"collapse/participation_ratio", e->collapse.participation},
        {"collapse/mean_correlation", e->collapse.mean_correlation},
        {"head/offdiag_norm", e->offdiag_norm},
        {"head/offdiag_max", e->offdiag_max},
        {"speed/images_per_s", e->images_per_s},
    };
    wrote(t, od_tensorboard_scalars(t->record->tensorboard, t->info.progress.step, scalars,
                                    sizeof scalars / sizeof *scalars));
}

/* ---- views ------------------------------------------------------------------------------------------------------ */

/* One view (size, size, 4) into a picture `width` pixels wide. */
static void draw_view(uint8_t *to, int width, const float *x, int size, const float mean[3], const float std[3]) {
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++)
            for (int c = 0; c < 3; c++) {
                float value = x[((size_t)i * size + j) * 4 + c] * std[c] + mean[c];
                to[((size_t)i * width + j) * 3 + c] = (uint8_t)lrintf(255 * fminf(fmaxf(value, 0), 1));
            }
}

/* Columns are images; each pair of rows holds their first and second views. */
od_status od_watch_views(od_trainer *t) {
    const od_views *v = &t->views;
    int images = v->made < VIEW_COLUMNS * VIEW_ROWS ? v->made : VIEW_COLUMNS * VIEW_ROWS, size = v->size;
    int columns = images < VIEW_COLUMNS ? images : VIEW_COLUMNS, rows = (images + columns - 1) / columns;
    int width = columns * (size + GAP) + GAP, height = rows * (2 * size + 2 * GAP) + GAP;
    size_t image = (size_t)size * size * 4;
    if (!t->record || !t->record->tensorboard || !images)
        return OD_OK;
    float *x = malloc(2 * images * image * sizeof *x);        /* (2, images, size, size, 4) */
    uint8_t *picture = calloc((size_t)height * width * 3, 1); /* (height, width, 3) */
    od_status status = x && picture ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for a picture of %d views", images);
    for (int view = 0; view < 2 && !status; view++)
        status = od_span_read(od_span_at(v->x, view * v->made * image), x + view * images * image, images * image);
    for (int i = 0; i < 2 * images && !status; i++) {
        int view = i / images, column = i % images % columns, row = i % images / columns;
        size_t top = GAP + row * (2 * size + 2 * GAP) + (size_t)view * (size + GAP / 2),
               left = GAP + column * (size + GAP);
        draw_view(picture + (top * width + left) * 3, width, x + i * image, size, v->policies[0].mean,
                  v->policies[0].std);
    }
    if (!status)
        wrote(t, od_tensorboard_image(t->record->tensorboard, t->info.progress.step, "views/batch", picture, width,
                                      height));
    free(x);
    free(picture);
    return status;
}

/* ---- the head --------------------------------------------------------------------------------------------------- */

/* Red for positive, blue for negative, white at 0; x in -1..1. */
static void colour(uint8_t rgb[3], double x) {
    static const double red[3] = {178, 24, 43}, blue[3] = {33, 102, 172};
    const double *end = x < 0 ? blue : red;
    for (int c = 0; c < 3; c++)
        rgb[c] = (uint8_t)lrint(255 + (end[c] - 255) * fmin(fabs(x), 1));
}

/* w (d, d): of a block of entries the one with the largest magnitude off the diagonal; the diagonal itself is grey. */
static void draw_cell(uint8_t rgb[3], const float *w, int d, int i, int j, int block, double scale) {
    double largest = 0;
    if (i == j) {
        memset(rgb, 150, 3);
        return;
    }
    for (int a = i * block; a < (i + 1) * block && a < d; a++)
        for (int b = j * block; b < (j + 1) * block && b < d; b++)
            if (fabs(w[(size_t)a * d + b]) > fabs(largest))
                largest = w[(size_t)a * d + b];
    colour(rgb, scale > 0 ? largest / scale : 0);
}

static od_status draw_head(od_trainer *t, const float *w, int d, double scale) {
    int block = (d + HEAD_CELLS - 1) / HEAD_CELLS, cells = (d + block - 1) / block;
    int zoom = (HEAD_PIXELS + cells - 1) / cells, side = cells * zoom;
    uint8_t *picture = malloc((size_t)side * side * 3); /* (side, side, 3) */
    if (!picture)
        return od_fail(OD_ERR_MEMORY, "no memory for a picture of the head");
    for (int i = 0; i < cells; i++)
        for (int j = 0; j < cells; j++) {
            uint8_t rgb[3];
            draw_cell(rgb, w, d, i, j, block, scale);
            for (int p = 0; p < zoom * zoom; p++)
                memcpy(picture + (((size_t)i * zoom + p / zoom) * side + (size_t)j * zoom + p % zoom) * 3, rgb, 3);
        }
    od_status status =
        od_tensorboard_image(t->record->tensorboard, t->info.progress.step, "head/E", picture, side, side);
    free(picture);
    return status;
}

/* Rows of E are the head's inputs, columns its outputs: p = z (I + E). */
static od_status write_head(od_trainer *t) {
    const od_param_table *params = od_model_params(t->model);
    const od_model_arenas arenas = od_model_get_arenas(t->model);
    od_span arena = arenas.value;
    const od_param *p = od_param_find(params, "predictor.V");
    p = p ? p : od_param_find(params, "predictor.weight");
    if (!p && (p = od_param_find(od_model_stats(t->model), "predictor.W"))) /* DirectPred's */
        arena = arenas.stats;
    if (!p || p->in != p->out)
        return OD_OK; /* none, or an MLP */
    int d = p->in;
    size_t n = 0;
    double scale = 0;
    float *w = malloc((size_t)d * d * sizeof *w);   /* (d, d) */
    float *off = malloc((size_t)d * d * sizeof *w); /* (d * (d - 1)) */
    od_status status = w && off ? od_span_read(od_span_at(arena, p->offset), w, p->count)
                                : od_fail(OD_ERR_MEMORY, "no memory for a %dx%d head", d, d);
    for (size_t i = 0; i < (size_t)d * d && !status; i++)
        if (i / d != i % d) {
            off[n++] = w[i];
            scale = fmax(scale, fabs(w[i]));
        }
    if (!status)
        wrote(t, od_tensorboard_histogram(t->record->tensorboard, t->info.progress.step, "head/offdiag", off, n));
    if (!status && t->record->tensorboard)
        wrote(t, draw_head(t, w, d, scale));
    free(w);
    free(off);
    return status;
}

od_status od_watch_epoch(od_trainer *t, const od_epoch *e) {
    if (t->record->tensorboard)
        write_epoch(t, e);
    return t->record->tensorboard ? write_head(t) : OD_OK;
}
