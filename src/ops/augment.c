#include "offdiag/ops/augment.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "ops/variant.h"

/* ---- the draw, from the text that the device compiles too -------------------------------------------------------- */

typedef struct augment_key {
    uint64_t seed;
    uint32_t epoch, id, view;
} augment_key;

static void augment_random(uint32_t bits[4], augment_key key, uint32_t block) {
    const uint32_t counter[4] = {key.id, key.epoch, key.view << 8 | block, OD_RNG_AUGMENT};
    const uint32_t seed[2] = {(uint32_t)key.seed, (uint32_t)(key.seed >> 32)};
    od_philox(bits, counter, seed);
}

static inline uint32_t mul_hi(uint32_t a, uint32_t b) {
    return (uint32_t)(((uint64_t)a * b) >> 32);
}

#define fma  fmaf
#define sqrt sqrtf
#include "cl/augment_draw.clh"
#undef fma
#undef sqrt

/* Of torchvision's crop when ten tries fail: centred, of the nearest allowed ratio. */
static void plan_crop(augment_plan *plan, const od_augment_policy *policy, int h, int w) {
    float low = policy->crop_ratio_min, high = policy->crop_ratio_max, ratio = (float)w / (float)h;
    plan->tries = 10;
    plan->fallback_height = h;
    plan->fallback_width = w;
    if (policy->crop_scale_min >= 1.0f && low == 1.0f && high == 1.0f)
        plan->tries = 0; /* no crop asked for: the whole image, whatever its shape */
    else if (ratio < low)
        plan->fallback_height = (int)lrintf((float)w / low);
    else if (ratio > high)
        plan->fallback_width = (int)lrintf((float)h * high);
    if (plan->fallback_height < 1)
        plan->fallback_height = 1;
    if (plan->fallback_width < 1)
        plan->fallback_width = 1;
    plan->fallback_top = (h - plan->fallback_height) / 2;
    plan->fallback_left = (w - plan->fallback_width) / 2;
}

static augment_plan make_plan(const od_augment_policy *policy, int h, int w) {
    augment_plan plan = {
        .h = h,
        .w = w,
        .scale_min = policy->crop_scale_min,
        .scale_max = policy->crop_scale_max,
        .log_ratio_min = logf(policy->crop_ratio_min),
        .log_ratio_max = logf(policy->crop_ratio_max),
        .jitter_p = policy->jitter_p,
        .brightness = policy->brightness,
        .contrast = policy->contrast,
        .saturation = policy->saturation,
        .hue = policy->hue,
        .grey_p = policy->grey_p,
        .blur_p = policy->blur_p,
        .sigma_min = policy->blur_sigma_min,
        .sigma_max = policy->blur_sigma_max,
        .solarize_p = policy->solarize_p,
        .flip_p = policy->flip_p,
    };
    plan_crop(&plan, policy, h, w);
    return plan;
}

void od_augment_draw(od_augment_params *out, const od_augment_policy *policy, int h, int w, uint64_t seed,
                     uint32_t epoch, uint32_t id, uint32_t view) {
    augment_plan plan = make_plan(policy, h, w);
    augment_draw_view(out, &plan, (augment_key){seed, epoch, id, view});
}

/* ---- arguments --------------------------------------------------------------------------------------------------- */

enum { MAX_SIDE = 4096, MAX_SIZE = 512 };

static bool between(float x, float low, float high) { /* false for NaN */
    return x >= low && x <= high;
}

static od_status check_policy(const od_augment_policy *p) {
    const float ps[] = {p->jitter_p, p->grey_p, p->blur_p, p->solarize_p, p->flip_p};
    for (size_t i = 0; i < sizeof(ps) / sizeof(ps[0]); i++)
        if (!between(ps[i], 0, 1))
            return od_fail(OD_ERR_ARGUMENT, "augmentation: expected probabilities in 0..1, found %g", ps[i]);
    if (!between(p->crop_scale_min, 1e-4f, 1) || !between(p->crop_scale_max, p->crop_scale_min, 1))
        return od_fail(OD_ERR_ARGUMENT, "augmentation: expected crop areas in 0.0001..1, found %g to %g",
                       p->crop_scale_min, p->crop_scale_max);
    if (!between(p->crop_ratio_min, 0.1f, 10) || !between(p->crop_ratio_max, p->crop_ratio_min, 10))
        return od_fail(OD_ERR_ARGUMENT, "augmentation: expected crop ratios in 0.1..10, found %g to %g",
                       p->crop_ratio_min, p->crop_ratio_max);
    const float strengths[] = {p->brightness, p->contrast, p->saturation};
    for (size_t i = 0; i < 3; i++)
        if (!between(strengths[i], 0, 100))
            return od_fail(OD_ERR_ARGUMENT, "augmentation: expected jitter strengths from 0, found %g", strengths[i]);
    if (!between(p->hue, 0, 0.5f))
        return od_fail(OD_ERR_ARGUMENT, "augmentation: expected hue in 0..0.5, found %g", p->hue);
    if (p->blur_p > 0 &&
        (!between(p->blur_sigma_min, 0.01f, 100) || !between(p->blur_sigma_max, p->blur_sigma_min, 100)))
        return od_fail(OD_ERR_ARGUMENT, "augmentation: expected blur sigma in 0.01..100, found %g to %g",
                       p->blur_sigma_min, p->blur_sigma_max);
    return OD_OK;
}

static od_status check_tensors(const od_augment_shape *s, const od_augment_policy *policy, od_span out,
                               const od_buffer *images, size_t images_offset) {
    if (s->n < 0 || s->h < 1 || s->w < 1 || s->h > MAX_SIDE || s->w > MAX_SIDE || (s->c != 1 && s->c != 3) ||
        s->size < 4 || s->size > MAX_SIZE)
        return od_fail(
            OD_ERR_ARGUMENT,
            "augmentation: expected images of 1 to %d pixels a side in 1 or 3 channels and views of 4 to %d, "
            "found (%d, %d, %d, %d) and %d",
            MAX_SIDE, MAX_SIZE, s->n, s->h, s->w, s->c, s->size);
    for (int k = 0; k < 3; k++)
        if (!isfinite(policy->mean[k]) || !between(policy->std[k], 1e-6f, 1e6f))
            return od_fail(OD_ERR_ARGUMENT, "augmentation: expected finite means and positive deviations, found %g, %g",
                           policy->mean[k], policy->std[k]);
    size_t in = (size_t)s->n * s->h * s->w * s->c, view = (size_t)s->n * s->size * s->size * 4;
    if (images_offset > od_buffer_size(images) || od_buffer_size(images) - images_offset < in)
        return od_fail(OD_ERR_ARGUMENT, "augmentation: %zu bytes of images at %zu pass the buffer's end at %zu", in,
                       images_offset, od_buffer_size(images));
    if (out.offset > od_buffer_size(out.buffer) / 4 || od_buffer_size(out.buffer) / 4 - out.offset < view)
        return od_fail(OD_ERR_ARGUMENT, "augmentation: %zu floats of views at %zu pass the buffer's end at %zu", view,
                       out.offset, od_buffer_size(out.buffer) / 4);
    return OD_OK;
}

static bool whole(float x, float low, float high) {
    return between(x, low, high) && x == floorf(x);
}

static od_status check_params(const od_augment_shape *s, const od_augment_params *p, int i) {
    if (!whole(p->crop_height, 1, (float)s->h) || !whole(p->crop_width, 1, (float)s->w) ||
        !whole(p->crop_top, 0, (float)s->h - p->crop_height) || !whole(p->crop_left, 0, (float)s->w - p->crop_width))
        return od_fail(OD_ERR_ARGUMENT,
                       "augmentation: view %d's crop, %g x %g at (%g, %g), is not whole pixels in %d x %d", i,
                       p->crop_height, p->crop_width, p->crop_top, p->crop_left, s->h, s->w);
    bool sound = isfinite(p->brightness) && isfinite(p->contrast) && isfinite(p->saturation) && isfinite(p->hue) &&
                 (p->blur_sigma == 0 || between(p->blur_sigma, 0.01f, 100));
    if (!sound)
        return od_fail(OD_ERR_ARGUMENT, "augmentation: view %d's jitter or blur sigma is out of range", i);
    return OD_OK;
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

typedef struct augment_work {
    int taps, radius;      /* of the resize and blur filters */
    size_t scratch_floats; /* of one group: the layout is at the kernel */
    size_t rounds;         /* of all loops together, for one view */
} augment_work;

static augment_work plan_work(const od_augment_shape *s) {
    int longest = s->h > s->w ? s->h : s->w, size = s->size;
    /* Four pixels when it grows; when it shrinks by r the filter is 4 r wide. In fours: the kernel's inner step. */
    int width = longest > size ? (4 * longest + size - 1) / size : 4;
    augment_work work = {.taps = (width + 3) / 4 * 4, .radius = size / 20 > 1 ? size / 20 : 1};
    size_t row = (size_t)s->w * s->c > (size_t)size ? (size_t)s->w * s->c : (size_t)size;
    work.scratch_floats = (size_t)size * (3 * (size_t)size + row + 2 * (size_t)work.taps + 3) + (size_t)work.radius + 1;
    work.scratch_floats = (work.scratch_floats + 15) / 16 * 16;
    size_t pixels = (size_t)size * size, steps = (size_t)work.taps / 4;
    work.rounds = steps * size * s->w * s->c + pixels * (s->c * (steps + 1) + 9 + 6 * ((size_t)work.radius + 1));
    return work;
}

typedef struct augment_run {
    const char *options;
    size_t group;
    bool local;
} augment_run;

static const augment_run run_cpu = {"-DTEAM=1 -DNX=1 -DLOCAL", 1, true};
static const augment_run run_gpu_local = {"-DTEAM=128 -DNX=32 -DLOCAL", 128, true};
static const augment_run run_gpu = {"-DTEAM=128 -DNX=32", 128, false};
static const augment_run run_ref = {"-DTEAM=1 -DNX=1", 1, false};

static bool fits_rounds(const od_device *device, const void *shape, const char **why) {
    return od_variant_loops(device, plan_work(shape).rounds, why);
}

static bool fits_local(const od_device *device, const void *shape, const char **why) {
    size_t bytes = plan_work(shape).scratch_floats * sizeof(float);
    *why = "an image's scratch is larger than local memory";
    return bytes <= 32768 && bytes <= od_device_get_info(device)->local_bytes;
}

static bool fits_group(const od_device *device, const void *shape, const char **why) {
    (void)shape;
    const od_device_info *info = od_device_get_info(device);
    *why = "work-groups of 128 are too large";
    return info->max_work_group >= 128 && info->max_work_item[0] >= 128;
}

static bool fits_cpu(const od_device *device, const void *shape, const char **why) {
    return fits_rounds(device, shape, why) && fits_local(device, shape, why);
}

static bool fits_gpu_local(const od_device *device, const void *shape, const char **why) {
    return fits_group(device, shape, why) && fits_local(device, shape, why);
}

static const od_variant variants[] = {
    {"cpu_view", OD_FAMILY_CPU, fits_cpu, &run_cpu},
    {"gpu_view_local", OD_FAMILY_GPU, fits_gpu_local, &run_gpu_local},
    {"gpu_view", OD_FAMILY_GPU, fits_group, &run_gpu},
    {"ref", OD_FAMILY_REF, fits_rounds, &run_ref},
    {"ref_group", OD_FAMILY_REF, NULL, &run_gpu},
};

static const augment_run *choose_run(const od_device *device, const od_augment_shape *s) {
    return variants[od_variant_choose(device, "augment", variants, sizeof(variants) / sizeof(variants[0]), s)].run;
}

/* Views from params (n) on the device. Shapes are checked. */
static od_status launch_views(od_device *device, const od_augment_shape *s, const od_augment_policy *policy,
                              od_span out, const od_buffer *images, size_t images_offset, const od_buffer *params) {
    const augment_run *run = choose_run(device, s);
    augment_work work = plan_work(s);
    size_t groups = (size_t)s->n, bytes = work.scratch_floats * sizeof(float);
    od_buffer *scratch = NULL;
    od_kernel *kernel;
    od_status status = od_kernel_get(device, "augment", run->options, "augment", &kernel);
    if (status == OD_OK && !run->local) {
        size_t most = 4 * (size_t)od_device_get_info(device)->compute_units;
        groups = groups < most ? groups : most;
        status = od_buffer_create(device, groups * bytes, &scratch);
    }
    if (status != OD_OK)
        return status;
    status = OD_LAUNCH(
        kernel, OD_RANGE1(groups * run->group, run->group), OD_SPAN(out), OD_BUF(images), OD_U64(images_offset),
        OD_BUF(params), run->local ? OD_LOCAL(bytes) : OD_BUF(scratch), OD_U64(run->local ? 0 : work.scratch_floats),
        OD_I32(s->n), OD_I32(s->h), OD_I32(s->w), OD_I32(s->c), OD_I32(s->size), OD_I32(work.taps), OD_I32(work.radius),
        OD_F32(policy->solarize_threshold), OD_F32(policy->mean[0]), OD_F32(policy->mean[1]), OD_F32(policy->mean[2]),
        OD_F32(1.0f / policy->std[0]), OD_F32(1.0f / policy->std[1]), OD_F32(1.0f / policy->std[2]));
    od_buffer_release(scratch);
    return status;
}

/* params (n) on the device, drawn there by a program with these options. */
static od_status launch_draw(od_device *device, const char *options, const od_augment_shape *s,
                             const od_augment_policy *policy, od_buffer *params, const od_buffer *ids,
                             size_t ids_offset, uint64_t seed, uint32_t epoch, uint32_t view) {
    augment_plan plan = make_plan(policy, s->h, s->w);
    od_kernel *kernel;
    od_status status = od_kernel_get(device, "augment", options, "augment_draw", &kernel);
    if (status != OD_OK)
        return status;
    return OD_LAUNCH(kernel, OD_RANGE1((size_t)s->n, 64), OD_BUF(params), OD_BUF(ids), OD_U64(ids_offset / 4),
                     OD_I32(s->n), OD_U64(seed), OD_U32(epoch), OD_U32(view), OD_I32(plan.h), OD_I32(plan.w),
                     OD_I32(plan.tries), OD_I32(plan.fallback_top), OD_I32(plan.fallback_left),
                     OD_I32(plan.fallback_height), OD_I32(plan.fallback_width), OD_F32(plan.scale_min),
                     OD_F32(plan.scale_max), OD_F32(plan.log_ratio_min), OD_F32(plan.log_ratio_max),
                     OD_F32(plan.jitter_p), OD_F32(plan.brightness), OD_F32(plan.contrast), OD_F32(plan.saturation),
                     OD_F32(plan.hue), OD_F32(plan.grey_p), OD_F32(plan.blur_p), OD_F32(plan.sigma_min),
                     OD_F32(plan.sigma_max), OD_F32(plan.solarize_p), OD_F32(plan.flip_p));
}

static od_status check_ids(const od_buffer *ids, size_t ids_offset, int n) {
    if (ids_offset % 4 != 0 || ids_offset > od_buffer_size(ids) || (od_buffer_size(ids) - ids_offset) / 4 < (size_t)n)
        return od_fail(OD_ERR_ARGUMENT, "augmentation: %d ids at byte %zu do not fit a buffer of %zu bytes", n,
                       ids_offset, od_buffer_size(ids));
    return OD_OK;
}

od_status od_augment_draw_on(od_device *device, od_augment_params *out, const od_augment_policy *policy, int n, int h,
                             int w, const od_buffer *ids, size_t ids_offset, uint64_t seed, uint32_t epoch,
                             uint32_t view) {
    const od_augment_shape shape = {.n = n, .h = h, .w = w};
    size_t bytes = (size_t)n * sizeof(*out);
    od_buffer *params = NULL;
    od_status status = check_policy(policy);
    if (status == OD_OK)
        status = check_ids(ids, ids_offset, n);
    if (status == OD_OK)
        status = od_buffer_create(device, bytes, &params);
    if (status == OD_OK)
        status = launch_draw(device, "", &shape, policy, params, ids, ids_offset, seed, epoch, view);
    if (status == OD_OK)
        status = od_buffer_read(params, 0, out, bytes);
    od_buffer_release(params);
    return status;
}

od_status od_augment(od_device *device, const od_augment_shape *shape, const od_augment_policy *policy, od_span out,
                     const od_buffer *images, size_t images_offset, const od_buffer *ids, size_t ids_offset,
                     uint64_t seed, uint32_t epoch, uint32_t view) {
    od_buffer *params = NULL;
    od_status status = check_policy(policy);
    if (status == OD_OK)
        status = check_tensors(shape, policy, out, images, images_offset);
    if (status == OD_OK)
        status = check_ids(ids, ids_offset, shape->n);
    if (status != OD_OK || shape->n == 0)
        return status;
    status = od_buffer_create(device, (size_t)shape->n * sizeof(od_augment_params), &params);
    if (status == OD_OK)
        status = launch_draw(device, choose_run(device, shape)->options, shape, policy, params, ids, ids_offset, seed,
                             epoch, view);
    if (status == OD_OK)
        status = launch_views(device, shape, policy, out, images, images_offset, params);
    od_buffer_release(params);
    return status;
}

od_status od_augment_fixed(od_device *device, const od_augment_shape *shape, const od_augment_policy *policy,
                           od_span out, const od_buffer *images, size_t images_offset,
                           const od_augment_params *params) {
    od_buffer *on_device = NULL;
    od_status status = check_tensors(shape, policy, out, images, images_offset);
    for (int i = 0; status == OD_OK && i < shape->n; i++)
        status = check_params(shape, &params[i], i);
    if (status != OD_OK || shape->n == 0)
        return status;
    size_t bytes = (size_t)shape->n * sizeof(*params);
    status = od_buffer_create(device, bytes, &on_device);
    if (status == OD_OK)
        status = od_buffer_write(on_device, 0, params, bytes);
    if (status == OD_OK)
        status = launch_views(device, shape, policy, out, images, images_offset, on_device);
    od_buffer_release(on_device);
    return status;
}

od_status od_augment_none(od_device *device, const od_augment_shape *shape, const od_augment_policy *policy,
                          od_span out, const od_buffer *images, size_t images_offset) {
    od_augment_params *params = malloc(sizeof(*params) * (size_t)(shape->n > 0 ? shape->n : 1));
    if (!params)
        return od_fail(OD_ERR_MEMORY, "augmentation: no memory for %d views' parameters", shape->n);
    for (int i = 0; i < shape->n; i++)
        params[i] = (od_augment_params){.crop_height = (float)shape->h,
                                        .crop_width = (float)shape->w,
                                        .brightness = 1,
                                        .contrast = 1,
                                        .saturation = 1};
    od_status status = od_augment_fixed(device, shape, policy, out, images, images_offset, params);
    free(params);
    return status;
}
