/* Resize and crop a picture whose rows come one at a time: as Pillow's BILINEAR, a triangle that widens when the
 * picture shrinks, but in float to the end (Pillow rounds between the two axes). */
#include <math.h>
#include <stdlib.h>

#include "data/reader.h"

/* One axis: output i is the sum over `count` inputs from `first` of input times weight. */
typedef struct tap {
    int first, count;
    size_t weights; /* index of the first weight */
} tap;

typedef struct axis {
    tap *taps;      /* (side) */
    float *weights; /* of all taps */
} axis;

struct od_resizer {
    int h, w, side, row;
    axis x, y;
    float *line; /* (side, 3): the present row, resized */
    float *sum;  /* (side, side, 3) */
};

/* Outputs crop .. crop+side-1 of an axis that goes from `in` to `size` samples. */
static bool make_axis(axis *a, int in, double size, double crop, int side) {
    double scale = (double)in / size, radius = scale > 1 ? scale : 1;
    size_t most = (size_t)(2 * radius) + 3, used = 0;
    a->taps = calloc((size_t)side, sizeof *a->taps);
    a->weights = malloc((size_t)side * most * sizeof *a->weights);
    if (!a->taps || !a->weights)
        return false;
    for (int i = 0; i < side; i++) {
        double centre = (i + crop + 0.5) * scale, total = 0;
        int first = (int)fmax(floor(centre - radius + 0.5), 0), end = (int)fmin(floor(centre + radius + 0.5), in);
        first = first < in ? first : in - 1;
        end = end > first ? end : first + 1;
        a->taps[i] = (tap){first, end - first, used};
        for (int j = first; j < end; j++)
            total += fmax(1 - fabs(j - centre + 0.5) / radius, 0);
        for (int j = first; j < end; j++)
            a->weights[used++] =
                total > 0 ? (float)(fmax(1 - fabs(j - centre + 0.5) / radius, 0) / total) : 1.0f / (float)(end - first);
    }
    return true;
}

od_status od_resizer_create(od_resizer **out, int h, int w, int side) {
    *out = NULL;
    if (h < 1 || w < 1 || side < 1)
        return od_fail(OD_ERR_ARGUMENT, "a picture of %d x %d cannot be resized to %d", h, w, side);
    od_resizer *r = calloc(1, sizeof *r);
    /* torchvision: the longer side is cut to whole pixels, and the crop begins at a rounded half of what is too much */
    double long_side = floor((double)side * (h > w ? h : w) / (h > w ? w : h));
    double crop = nearbyint((long_side - side) / 2);
    size_t pixels = (size_t)side * (size_t)side;
    bool ok = r != NULL;
    if (ok) {
        r->h = h;
        r->w = w;
        r->side = side;
        r->line = malloc((size_t)side * 3 * sizeof(float));
        r->sum = calloc(pixels * 3, sizeof(float));
        ok = r->line && r->sum && make_axis(&r->x, w, w > h ? long_side : side, w > h ? crop : 0, side) &&
             make_axis(&r->y, h, h > w ? long_side : side, h > w ? crop : 0, side);
    }
    if (!ok) {
        od_resizer_destroy(r);
        return od_fail(OD_ERR_MEMORY, "no memory to resize a picture of %d x %d to %d", h, w, side);
    }
    *out = r;
    return OD_OK;
}

static void resize_line(od_resizer *r, const uint8_t *row) {
    for (int i = 0; i < r->side; i++) {
        const tap *t = &r->x.taps[i];
        const float *weight = r->x.weights + t->weights;
        const uint8_t *in = row + (size_t)t->first * 3;
        float sum[3] = {0};
        for (int j = 0; j < t->count; j++)
            for (int k = 0; k < 3; k++)
                sum[k] += weight[j] * in[3 * j + k];
        for (int k = 0; k < 3; k++)
            r->line[3 * i + k] = sum[k];
    }
}

void od_resizer_row(od_resizer *r, const uint8_t *row) {
    int y = r->row++;
    bool resized = false;
    for (int i = 0; i < r->side; i++) {
        const tap *t = &r->y.taps[i];
        if (y < t->first || y >= t->first + t->count)
            continue;
        if (!resized)
            resize_line(r, row); /* rows outside the crop are not looked at */
        resized = true;
        float weight = r->y.weights[t->weights + (size_t)(y - t->first)], *to = r->sum + (size_t)i * r->side * 3;
        for (int j = 0; j < 3 * r->side; j++)
            to[j] += weight * r->line[j];
    }
}

void od_resizer_finish(const od_resizer *r, uint8_t *out) {
    size_t count = (size_t)r->side * r->side * 3;
    for (size_t i = 0; i < count; i++)
        out[i] = (uint8_t)fminf(fmaxf(r->sum[i] + 0.5f, 0), 255);
}

void od_resizer_destroy(od_resizer *r) {
    if (!r)
        return;
    free(r->x.taps);
    free(r->x.weights);
    free(r->y.taps);
    free(r->y.weights);
    free(r->line);
    free(r->sum);
    free(r);
}
