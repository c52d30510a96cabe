/* Augmentation: resizing, what follows from a pixel alone, the draw, and a full view from its own draw. */
#include <math.h>
#include <string.h>

#include "cli/selftest/runner.h"
#include "offdiag/ops/augment.h"

static const od_augment_policy policy = {
    .crop_scale_min = 0.2f,
    .crop_scale_max = 1,
    .crop_ratio_min = 0.75f,
    .crop_ratio_max = 4.0f / 3,
    .jitter_p = 0.8f,
    .brightness = 0.4f,
    .contrast = 0.4f,
    .saturation = 0.4f,
    .hue = 0.1f,
    .grey_p = 0.2f,
    .blur_p = 0.5f,
    .blur_sigma_min = 0.1f,
    .blur_sigma_max = 2,
    .solarize_p = 0.2f,
    .solarize_threshold = 0.5f,
    .flip_p = 0.5f,
    .mean = {0.49f, 0.48f, 0.45f},
    .std = {0.25f, 0.24f, 0.26f},
};

/* Pixels of 8 bits as words of 32. */
static uint8_t *random_pixels(od_check *k, size_t bytes) {
    float *draws = od_check_uniforms(k, bytes, 0);
    uint8_t *pixels = od_check_alloc(k, (bytes + 3) / 4 * 4);
    for (size_t i = 0; draws && pixels && i < bytes; i++)
        pixels[i] = (uint8_t)(draws[i] * 256);
    return pixels;
}

/* Keys' cubic with a = -0.5. */
static double cubic(double x) {
    x = fabs(x);
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/* Weights (to, from) of one axis: the filter widens when the picture shrinks, and sums to 1 at the edges too. */
static void axis_weights(double *weights, int from, int to) {
    double step = (double)from / to, widen = fmax(step, 1);
    for (int i = 0; i < to; i++) {
        double centre = (i + 0.5) * step, sum = 0;
        for (int j = 0; j < from; j++)
            sum += weights[i * from + j] = cubic((j + 0.5 - centre) / widen);
        for (int j = 0; j < from; j++)
            weights[i * from + j] /= sum;
    }
}

/* out (size, size, 4) of one image (h, w, c); flipped and solarised where asked. */
static void reference_view(double *out, const uint8_t *image, const od_augment_shape *s, const double *rows,
                           const double *columns, bool flip, bool solarize) {
    for (int p = 0; p < s->size; p++)
        for (int q = 0; q < s->size; q++)
            for (int c = 0; c < 3; c++) {
                double v = 0;
                for (int i = 0; i < s->h; i++)
                    for (int j = 0; j < s->w; j++)
                        v += rows[p * s->h + i] * columns[q * s->w + j] / 255 *
                             image[((size_t)i * (size_t)s->w + (size_t)j) * (size_t)s->c + (size_t)(s->c == 3 ? c : 0)];
                v = fmin(fmax(v, 0), 1);
                if (solarize && v >= (double)policy.solarize_threshold)
                    v = 1 - v;
                int to = flip ? s->size - 1 - q : q;
                out[((size_t)p * (size_t)s->size + (size_t)to) * 4 + (size_t)c] =
                    (v - (double)policy.mean[c]) / (double)policy.std[c];
            }
}

/* plain: od_augment_none; else the second image is flipped and solarised, which needs one pixel for another. */
static void check_view(od_check *k, const od_augment_shape *s, bool plain) {
    od_check_operation(k, plain ? "augment_none" : "augment_fixed");
    od_check_case(k, "%dx%dx%d to %d", s->h, s->w, s->c, s->size);
    size_t image = (size_t)s->h * (size_t)s->w * (size_t)s->c, in = (size_t)s->n * image;
    size_t view = (size_t)s->size * (size_t)s->size * 4, out = (size_t)s->n * view;
    uint8_t *pixels = random_pixels(k, in);
    double *rows = od_check_alloc(k, (size_t)(s->size * s->h) * sizeof *rows);
    double *columns = od_check_alloc(k, (size_t)(s->size * s->w) * sizeof *columns);
    double *ref = od_check_alloc(k, out * sizeof *ref);
    od_augment_params *params = od_check_alloc(k, (size_t)s->n * sizeof *params);
    od_span images = od_check_input(k, pixels, (in + 3) / 4), views = od_check_output(k, out);
    if (!od_check_ready(k))
        return;
    axis_weights(rows, s->h, s->size);
    axis_weights(columns, s->w, s->size);
    for (int i = 0; i < s->n; i++) {
        bool turned = !plain && i % 2 == 1;
        params[i] = (od_augment_params){.crop_height = (float)s->h,
                                        .crop_width = (float)s->w,
                                        .brightness = 1,
                                        .contrast = 1,
                                        .saturation = 1,
                                        .flip = turned,
                                        .solarize = turned};
        reference_view(ref + (size_t)i * view, pixels + (size_t)i * image, s, rows, columns, turned, turned);
    }
    od_status status = plain ? od_augment_none(k->device, s, &policy, views, images.buffer, images.offset * 4)
                             : od_augment_fixed(k->device, s, &policy, views, images.buffer, images.offset * 4, params);
    if (od_check_ran(k, status))
        od_check_near(k, "views", views, ref, 1e-5);
}

static void check_draw(od_check *k) {
    enum { N = 500 };
    const uint64_t seed = 0x123456789abcu;
    od_check_operation(k, "augment_draw");
    od_check_case(k, "%d images", N);
    uint32_t *ids = od_check_alloc(k, N * sizeof *ids);
    od_augment_params *drawn = od_check_alloc(k, N * sizeof *drawn), host;
    if (!od_check_ready(k))
        return;
    for (uint32_t i = 0; i < N; i++)
        ids[i] = i * 214013u;
    od_span id_span = od_check_input(k, ids, N);
    if (!od_check_ready(k) || !od_check_ran(k, od_augment_draw_on(k->device, drawn, &policy, N, 32, 24, id_span.buffer,
                                                                  id_span.offset * 4, seed, 3, 1)))
        return;
    int wrong = 0;
    for (int i = 0; i < N; i++) {
        memset(&host, 0, sizeof host);
        od_augment_draw(&host, &policy, 32, 24, seed, 3, ids[i], 1);
        wrong += memcmp(&host, &drawn[i], sizeof host) != 0;
    }
    od_check_that(k, wrong == 0, "%d of %d draws differ from the host's", wrong, N);
}

/* All that a policy may draw at once equals the same view with the host's draw as given parameters. */
static void check_drawn_view(od_check *k) {
    enum { N = 4, H = 24, W = 20, SIZE = 16 };
    const od_augment_shape s = {N, H, W, 3, SIZE};
    const size_t in = (size_t)N * H * W * 3, out = (size_t)N * SIZE * SIZE * 4;
    od_check_operation(k, "augment");
    od_check_case(k, "%dx%dx3 to %d", H, W, SIZE);
    uint8_t *pixels = random_pixels(k, in);
    static const uint32_t ids[N] = {7, 100, 3, 65537};
    od_augment_params params[N];
    float *fixed = od_check_alloc(k, out * sizeof *fixed);
    for (int i = 0; i < N; i++)
        od_augment_draw(&params[i], &policy, H, W, 5, 2, ids[i], 0);
    od_span images = od_check_input(k, pixels, in / 4), id_span = od_check_input(k, ids, N);
    od_span expected = od_check_output(k, out), views = od_check_output(k, out);
    if (od_check_ready(k) &&
        od_check_ran(k, od_augment_fixed(k->device, &s, &policy, expected, images.buffer, images.offset * 4, params)) &&
        od_check_ran(k, od_span_read(expected, fixed, out)) &&
        od_check_ran(k, od_augment(k->device, &s, &policy, views, images.buffer, images.offset * 4, id_span.buffer,
                                   id_span.offset * 4, 5, 2, 0))) {
        size_t finite = 0;
        for (size_t i = 0; i < out; i++)
            finite += isfinite(fixed[i]) != 0;
        od_check_that(k, finite == out, "%zu of %zu elements are finite", finite, out);
        od_check_words(k, "views", views, fixed);
    }
}

void od_check_augment(od_check *k) {
    static const od_augment_shape shapes[] = {{3, 12, 12, 3, 12}, {2, 23, 17, 3, 9}, {2, 9, 14, 1, 20}};
    static const od_augment_shape more[] = {{1, 4, 4, 3, 4},    {5, 8, 8, 3, 8},   {2, 5, 6, 1, 16},
                                            {3, 16, 16, 3, 7},  {2, 32, 28, 3, 8}, {1, 7, 9, 3, 32},
                                            {4, 28, 28, 1, 14}, {2, 33, 32, 1, 31}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && !k->stopped; i++)
        check_view(k, &shapes[i], true);
    check_view(k, &shapes[0], false);
    for (size_t i = 0; k->wide && i < 2 * (sizeof more / sizeof *more) && !k->stopped; i++)
        check_view(k, &more[i / 2], i % 2);
    check_draw(k);
    check_drawn_view(k);
}
