/* Image augmentation. augment_draw: one work-item draws one view's parameters. augment: one work-group makes one view
 * at a time, its image in scratch as three planes of S x S, all stages in a row.
 *
 * -DTEAM=n    work-items in a group; 1: no barriers, inner loops over neighbours for a CPU's vectors
 * -DNX=n      of them along x (a power of two that divides TEAM)
 * -DLOCAL     scratch is local memory; otherwise global memory, a part for each group
 *
 * Branches on a view's parameters are uniform in its group, and barriers lie outside them all the same. */
#include "common.clh"
#include "philox.clh"

typedef struct od_augment_params {
    float crop_top, crop_left, crop_height, crop_width;
    float brightness, contrast, saturation, hue;
    int jitter, order[4];
    int grey, flip, solarize;
    float blur_sigma;
} od_augment_params;

typedef struct augment_key {
    ulong seed;
    uint epoch, id, view;
} augment_key;

static inline void augment_random(uint bits[4], augment_key key, uint block) {
    uint4 drawn = philox4x32((uint4)(key.id, key.epoch, key.view << 8 | block, 3u), /* OD_RNG_AUGMENT */
                             (uint2)((uint)key.seed, (uint)(key.seed >> 32)));
    bits[0] = drawn.x;
    bits[1] = drawn.y;
    bits[2] = drawn.z;
    bits[3] = drawn.w;
}

#include "augment_draw.clh"

/* params (n), ids (n) */
__kernel void augment_draw(__global od_augment_params *params, __global const uint *ids, ulong ids_offset, int n,
                           ulong seed, uint epoch, uint view, int h, int w, int tries, int fallback_top,
                           int fallback_left, int fallback_height, int fallback_width, float scale_min, float scale_max,
                           float log_ratio_min, float log_ratio_max, float jitter_p, float brightness, float contrast,
                           float saturation, float hue, float grey_p, float blur_p, float sigma_min, float sigma_max,
                           float solarize_p, float flip_p) {
    int i = (int)get_global_id(0);
    if (i >= n)
        return;
    augment_plan plan = {
        h,          w,         tries,         fallback_top,  fallback_left, fallback_height, fallback_width,
        scale_min,  scale_max, log_ratio_min, log_ratio_max, jitter_p,      brightness,      contrast,
        saturation, hue,       grey_p,        blur_p,        sigma_min,     sigma_max,       solarize_p,
        flip_p};
    augment_key key = {seed, epoch, ids[ids_offset + (ulong)i], view};
    od_augment_params drawn;
    augment_draw_view(&drawn, &plan, key);
    params[i] = drawn;
}

#ifdef TEAM

#ifdef LOCAL
#define MEM   __local
#define FENCE CLK_LOCAL_MEM_FENCE
#else
#define MEM   __global
#define FENCE CLK_GLOBAL_MEM_FENCE
#endif

#if TEAM == 1
#define LID       0
#define BARRIER() ((void)0)
#define STAGE     OUTLINED
#else
#define STAGE     static inline void
#define LID       ((int)get_local_id(0))
#define BARRIER() barrier(FENCE)
#endif
#define NY (TEAM / NX)

#ifndef RESTRICT /* planes never overlap; telling the compiler so doubles the speed on CPUs */
#define RESTRICT restrict
#endif

/* A group's share of 0..count-1, and of rows and columns. */
#define EACH(i, count)   for (int i = LID; i < (count); i += TEAM)
#define EACH_X(x, count) for (int x = LID & (NX - 1); x < (count); x += NX)
#define EACH_Y(y, count) for (int y = LID / NX; y < (count); y += NY)

/* ---- crop and resize -------------------------------------------------------------------------------------------- */

/* Keys' cubic with a = -0.5, as Pillow's. */
static inline float cubic(float x) {
    x = fabs(x);
    float near = fma(fma(1.5f, x, -2.5f) * x, x, 1.0f);
    float far = fma(fma(fma(-0.5f, x, 2.5f), x, -4.0f), x, 2.0f);
    return x < 1.0f ? near : x < 2.0f ? far : 0.0f;
}

/* For each of `size` outputs along an axis of `crop` pixels: the first input pixel, first (size), and the normalised
 * weights of `taps` pixels from there, weights (taps, size). The filter widens when the image shrinks (antialiasing).
 */
STAGE resize_table(MEM float *RESTRICT weights, MEM int *RESTRICT first, int size, int taps, int crop) {
    float scale = (float)crop / (float)size, widen = fmax(scale, 1.0f), support = 2.0f * widen;
    EACH(i, size) {
        float center = scale * ((float)i + 0.5f), sum = 0.0f;
        int begin = max((int)(center - support + 0.5f), 0);
        int count = min((int)(center + support + 0.5f), crop) - begin;
        for (int t = 0; t < taps; t++) {
            float weight = t < count ? cubic(((float)(begin + t) - center + 0.5f) / widen) : 0.0f;
            weights[t * size + i] = weight;
            sum += weight;
        }
        for (int t = 0; t < taps; t++)
            weights[t * size + i] /= sum;
        first[i] = begin;
    }
}

/* rows (size, width) of floats from the crop (height, width) of bytes whose rows are `stride` apart; taps: a multiple
 * of 4. */
STAGE resize_columns(MEM float *RESTRICT rows, __global const uchar *RESTRICT crop,
                     MEM const float *RESTRICT weights, MEM const int *RESTRICT first, int size, int taps,
                     int height, int width, int stride) {
    EACH_Y(y, size) {
        MEM float *RESTRICT row = rows + y * width;
        EACH_X(x, width) {
            row[x] = 0.0f;
        }
        for (int t = 0; t < taps; t += 4) {
            int from = first[y] + t;
            __global const uchar *RESTRICT r0 = crop + min(from, height - 1) * stride;
            __global const uchar *RESTRICT r1 = crop + min(from + 1, height - 1) * stride;
            __global const uchar *RESTRICT r2 = crop + min(from + 2, height - 1) * stride;
            __global const uchar *RESTRICT r3 = crop + min(from + 3, height - 1) * stride;
            float w0 = weights[t * size + y], w1 = weights[(t + 1) * size + y];
            float w2 = weights[(t + 2) * size + y], w3 = weights[(t + 3) * size + y];
            EACH_X(x, width) {
                row[x] += w0 * (float)r0[x] + w1 * (float)r1[x] + w2 * (float)r2[x] + w3 * (float)r3[x];
            }
        }
    }
}

/* One plane (size, size), in [0, 1], from rows (size, width, c) of 0..255. */
STAGE resize_rows(MEM float *RESTRICT plane, MEM const float *RESTRICT rows,
                  MEM const float *RESTRICT weights, MEM const int *RESTRICT first, int size, int taps,
                  int width, int c) {
    EACH_Y(y, size) {
        MEM const float *RESTRICT row = rows + y * width * c;
        MEM float *RESTRICT to = plane + y * size;
        EACH_X(x, size) {
            to[x] = 0.0f;
        }
        for (int t = 0; t < taps; t += 4) {
            MEM const float *RESTRICT w = weights + t * size;
            EACH_X(x, size) {
                int from = first[x] + t;
                to[x] += w[x] * row[min(from, width - 1) * c] + w[size + x] * row[min(from + 1, width - 1) * c] +
                         w[2 * size + x] * row[min(from + 2, width - 1) * c] +
                         w[3 * size + x] * row[min(from + 3, width - 1) * c];
            }
        }
        EACH_X(x, size) {
            to[x] = clamp(to[x] * (1.0f / 255.0f), 0.0f, 1.0f);
        }
    }
}

STAGE copy_plane(MEM float *RESTRICT to, MEM const float *RESTRICT from, int count) {
    EACH(p, count) {
        to[p] = from[p];
    }
}

/* ---- colour ----------------------------------------------------------------------------------------------------- */

static inline float grey_of(float r, float g, float b) {
    return 0.2989f * r + 0.587f * g + 0.114f * b;
}

static inline float blend(float a, float b, float factor) {
    return clamp(factor * a + (1.0f - factor) * b, 0.0f, 1.0f);
}

STAGE adjust_brightness(MEM float *RESTRICT r, MEM float *RESTRICT g, MEM float *RESTRICT b, int count,
                        float factor) {
    EACH(p, count) {
        r[p] = clamp(r[p] * factor, 0.0f, 1.0f);
        g[p] = clamp(g[p] * factor, 0.0f, 1.0f);
        b[p] = clamp(b[p] * factor, 0.0f, 1.0f);
    }
}

/* Sums of grey over each column: sums (size). Each work-item keeps to its columns: no barrier within. */
STAGE grey_columns(MEM float *RESTRICT sums, MEM const float *RESTRICT r, MEM const float *RESTRICT g,
                   MEM const float *RESTRICT b, int size) {
    EACH(x, size) {
        sums[x] = 0.0f;
    }
    for (int y = 0; y < size; y++)
        EACH(x, size) {
            sums[x] += grey_of(r[y * size + x], g[y * size + x], b[y * size + x]);
        }
}

STAGE adjust_contrast(MEM float *RESTRICT r, MEM float *RESTRICT g, MEM float *RESTRICT b,
                      MEM const float *RESTRICT sums, int size, float factor) {
    float mean = 0.0f;
    for (int x = 0; x < size; x++)
        mean += sums[x];
    mean /= (float)(size * size);
    EACH(p, size * size) {
        r[p] = blend(r[p], mean, factor);
        g[p] = blend(g[p], mean, factor);
        b[p] = blend(b[p], mean, factor);
    }
}

STAGE adjust_saturation(MEM float *RESTRICT r, MEM float *RESTRICT g, MEM float *RESTRICT b, int count,
                        float factor) {
    EACH(p, count) {
        float grey = grey_of(r[p], g[p], b[p]);
        r[p] = blend(r[p], grey, factor);
        g[p] = blend(g[p], grey, factor);
        b[p] = blend(b[p], grey, factor);
    }
}

/* A channel of the colour (hue in sixths of a turn, value, chroma); n: 5 red, 3 green, 1 blue. */
static inline float hue_channel(float n, float hue, float value, float chroma) {
    float k = n + hue;
    k -= k >= 6.0f ? 6.0f : 0.0f;
    return value - chroma * clamp(fmin(k, 4.0f - k), 0.0f, 1.0f);
}

/* Through HSV: the hue turns by `turns`, saturation and value stay. */
STAGE adjust_hue(MEM float *RESTRICT r, MEM float *RESTRICT g, MEM float *RESTRICT b, int count,
                 float turns) {
    EACH(p, count) {
        float red = r[p], green = g[p], blue = b[p];
        float high = fmax(red, fmax(green, blue)), chroma = high - fmin(red, fmin(green, blue));
        float inverse = 1.0f / (chroma > 0.0f ? chroma : 1.0f);
        float hue = high == red     ? (green - blue) * inverse
                    : high == green ? 2.0f + (blue - red) * inverse
                                    : 4.0f + (red - green) * inverse;
        hue = hue * (1.0f / 6.0f) + turns;
        hue = (hue - floor(hue)) * 6.0f;
        r[p] = hue_channel(5.0f, hue, high, chroma);
        g[p] = hue_channel(3.0f, hue, high, chroma);
        b[p] = hue_channel(1.0f, hue, high, chroma);
    }
}

STAGE make_grey(MEM float *RESTRICT r, MEM float *RESTRICT g, MEM float *RESTRICT b, int count) {
    EACH(p, count) {
        float grey = grey_of(r[p], g[p], b[p]);
        r[p] = grey;
        g[p] = grey;
        b[p] = grey;
    }
}

/* ---- blur ------------------------------------------------------------------------------------------------------- */

/* weights (radius + 1): the middle and one side of a normalised Gaussian. */
STAGE blur_table(MEM float *weights, int radius, float sigma) {
    EACH(i, radius + 1) {
        float sum = 1.0f;
        for (int k = 1; k <= radius; k++)
            sum += 2.0f * exp(-0.5f * ((float)k / sigma) * ((float)k / sigma));
        weights[i] = exp(-0.5f * ((float)i / sigma) * ((float)i / sigma)) / sum;
    }
}

static inline int reflect(int i, int size) {
    i = abs(i);
    return i < size ? i : 2 * (size - 1) - i;
}

STAGE blur_rows(MEM float *RESTRICT to, MEM const float *RESTRICT from, MEM const float *RESTRICT weights,
                int size, int radius) {
    EACH_Y(y, size) {
        MEM float *RESTRICT out = to + y * size;
        MEM const float *RESTRICT in = from + y * size;
        float middle = weights[0];
        EACH_X(x, size) {
            out[x] = middle * in[x];
        }
        for (int k = 1; k <= radius; k++) {
            float side = weights[k];
            EACH_X(x, size) {
                out[x] += side * (in[reflect(x - k, size)] + in[reflect(x + k, size)]);
            }
        }
    }
}

STAGE blur_columns(MEM float *RESTRICT to, MEM const float *RESTRICT from,
                   MEM const float *RESTRICT weights, int size, int radius) {
    EACH_Y(y, size) {
        MEM float *RESTRICT out = to + y * size;
        MEM const float *RESTRICT in = from + y * size;
        float middle = weights[0];
        EACH_X(x, size) {
            out[x] = middle * in[x];
        }
        for (int k = 1; k <= radius; k++) {
            MEM const float *RESTRICT above = from + reflect(y - k, size) * size;
            MEM const float *RESTRICT below = from + reflect(y + k, size) * size;
            float side = weights[k];
            EACH_X(x, size) {
                out[x] += side * (above[x] + below[x]);
            }
        }
    }
}

/* ---- the whole view --------------------------------------------------------------------------------------------- */

/* Flip, solarise, normalise: out (size, size, 4). */
STAGE write_view(__global float *RESTRICT out, MEM const float *RESTRICT r, MEM const float *RESTRICT g,
                 MEM const float *RESTRICT b, int size, int flip, float threshold, float4 mean,
                 float4 inverse_std) {
    EACH_Y(y, size) {
        EACH_X(x, size) {
            int p = y * size + (flip ? size - 1 - x : x);
            float4 v = (float4)(r[p], g[p], b[p], 0.0f);
            v = select(v, 1.0f - v, v >= threshold);
            v = (v - mean) * inverse_std;
            v.w = 0.0f;
            vstore4(v, (ulong)(y * size + x), out);
        }
    }
}

/* out (n, size, size, 4) from images (n, h, w, c). scratch, for each group: planes (3, size, size), rows (size, the
 * wider of w * c and size), weights of both axes (2, taps, size), first pixels (2, size), column sums (size), blur
 * (radius + 1). */
__kernel __attribute__((reqd_work_group_size(TEAM, 1, 1))) void
augment(__global float *restrict out, ulong out_offset, __global const uchar *restrict images, ulong images_offset,
        __global const od_augment_params *restrict params, MEM float *restrict scratch, ulong scratch_stride, int n,
        int h, int w, int c, int size, int taps, int radius, float threshold, float mean_r, float mean_g, float mean_b,
        float scale_r, float scale_g, float scale_b) {
    const int count = size * size;
    scratch += get_group_id(0) * scratch_stride;
    MEM float *red = scratch, *green = red + count, *blue = green + count;
    MEM float *rows = blue + count;
    MEM float *weights_x = rows + size * max(w * c, size), *weights_y = weights_x + taps * size;
    MEM int *first_x = (MEM int *)(weights_y + taps * size), *first_y = first_x + size;
    MEM float *sums = (MEM float *)(first_y + size), *blur = sums + size;
    const float4 mean = (float4)(mean_r, mean_g, mean_b, 0.0f), inverse_std = (float4)(scale_r, scale_g, scale_b, 0.0f);

    for (int i = (int)get_group_id(0); i < n; i += (int)get_num_groups(0)) {
        __global const od_augment_params *v = params + i;
        int height = (int)v->crop_height, width = (int)v->crop_width;
        __global const uchar *crop =
            images + images_offset + (ulong)i * (ulong)(h * w * c) + ((int)v->crop_top * w + (int)v->crop_left) * c;
        resize_table(weights_x, first_x, size, taps, width);
        resize_table(weights_y, first_y, size, taps, height);
        BARRIER();
        resize_columns(rows, crop, weights_y, first_y, size, taps, height, width * c, w * c);
        BARRIER();
        for (int k = 0; k < c; k++)
            resize_rows(red + k * count, rows + k, weights_x, first_x, size, taps, width, c);
        BARRIER();
        if (c == 1) {
            copy_plane(green, red, count);
            copy_plane(blue, red, count);
        }
        BARRIER();

        for (int j = 0; j < 4; j++) {
            int part = v->jitter ? v->order[j] : -1;
            if (part == 1)
                grey_columns(sums, red, green, blue, size);
            BARRIER();
            if (part == 0)
                adjust_brightness(red, green, blue, count, v->brightness);
            else if (part == 1)
                adjust_contrast(red, green, blue, sums, size, v->contrast);
            else if (part == 2)
                adjust_saturation(red, green, blue, count, v->saturation);
            else if (part == 3)
                adjust_hue(red, green, blue, count, v->hue);
            BARRIER();
        }
        if (v->grey)
            make_grey(red, green, blue, count);

        int blurred = v->blur_sigma > 0.0f;
        if (blurred)
            blur_table(blur, radius, v->blur_sigma);
        BARRIER();
        for (int k = 0; k < 3; k++) {
            if (blurred)
                blur_rows(rows, red + k * count, blur, size, radius);
            BARRIER();
            if (blurred)
                blur_columns(red + k * count, rows, blur, size, radius);
            BARRIER();
        }
        write_view(out + out_offset + (ulong)i * (ulong)(4 * count), red, green, blue, size, v->flip,
                   v->solarize ? threshold : INFINITY, mean, inverse_std);
        BARRIER(); /* the planes are written again for the next view */
    }
}

#endif
