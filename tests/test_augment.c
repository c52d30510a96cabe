/* Augmentation: against torchvision's values, host's draw against the device's, and what must hold of any draw. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/safetensors.h"
#include "harness.h"
#include "offdiag/ops/augment.h"

static const od_augment_policy simsiam = {
    .crop_scale_min = 0.08f,
    .crop_scale_max = 1,
    .crop_ratio_min = 3.0f / 4,
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
    .mean = {0.4914f, 0.4822f, 0.4465f},
    .std = {0.2470f, 0.2435f, 0.2616f},
};
static const od_family families[] = {OD_FAMILY_REF, OD_FAMILY_CPU, OD_FAMILY_GPU};

/* Images (n, h, w, c) of random bytes, in device memory from byte 3 on: no alignment is promised. */
enum { IMAGES_AT = 3 };

static uint8_t *random_bytes(size_t count, uint32_t seed) {
    uint8_t *bytes = malloc(count);
    uint32_t *words = malloc(count * sizeof(*words));
    cr_assert(bytes && words);
    od_data_index(words, count, 256, seed, 9);
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)words[i];
    free(words);
    return bytes;
}

static od_buffer *upload_at(od_device *device, size_t offset, const void *bytes, size_t count) {
    od_buffer *buffer;
    uint8_t *padded = calloc(1, offset + count);
    cr_assert(padded);
    memcpy(padded + offset, bytes, count);
    OD_MUST(od_buffer_create(device, offset + count, &buffer));
    OD_MUST(od_buffer_write(buffer, 0, padded, offset + count));
    free(padded);
    return buffer;
}

/* ---- fixed parameters, torchvision's values -----------------------------------------------------------------------
 */

static od_augment_params params_of(const float v[17]) {
    return (od_augment_params){.crop_top = v[0],
                               .crop_left = v[1],
                               .crop_height = v[2],
                               .crop_width = v[3],
                               .brightness = v[4],
                               .contrast = v[5],
                               .saturation = v[6],
                               .hue = v[7],
                               .jitter = (int32_t)v[8],
                               .order = {(int32_t)v[9], (int32_t)v[10], (int32_t)v[11], (int32_t)v[12]},
                               .grey = (int32_t)v[13],
                               .flip = (int32_t)v[14],
                               .solarize = (int32_t)v[15],
                               .blur_sigma = v[16]};
}

/* The golden view, spread to four channels: ref (size, size, 4). */
static void spread_view(double *ref, const float *view, int size) {
    for (int p = 0; p < size * size; p++)
        for (int k = 0; k < 4; k++)
            ref[4 * p + k] = k < 3 ? view[3 * p + k] : 0;
}

static void check_golden(od_cases *cases, const od_safetensors *golden, int index, od_device *device) {
    char name[32];
    float v[17];
    (void)snprintf(name, sizeof(name), "%d.image", index);
    const od_tensor *image = od_safetensors_find(golden, name);
    uint8_t *bytes = od_case_alloc(cases, image->bytes);
    OD_MUST(od_safetensors_read(golden, image, bytes));
    (void)snprintf(name, sizeof(name), "%d.params", index);
    OD_MUST(od_safetensors_read_as(golden, name, OD_F32, 17, v));
    (void)snprintf(name, sizeof(name), "%d.view", index);
    const od_tensor *view = od_safetensors_find(golden, name);
    float *expected = od_case_alloc(cases, view->bytes);
    OD_MUST(od_safetensors_read(golden, view, expected));

    int size = (int)view->shape[0];
    size_t count = (size_t)size * (size_t)size * 4;
    double *ref = od_case_alloc(cases, 2 * count * sizeof(*ref));
    spread_view(ref, expected, size);
    spread_view(ref + count, expected, size);
    /* Twice in a batch, so that the second view's offsets count too. */
    uint8_t *twice = od_case_alloc(cases, 2 * image->bytes);
    memcpy(twice, bytes, image->bytes);
    memcpy(twice + image->bytes, bytes, image->bytes);
    const od_augment_params params[2] = {params_of(v), params_of(v)};
    od_augment_shape shape = {2, (int)image->shape[0], (int)image->shape[1], (int)image->shape[2], size};
    od_buffer *images = upload_at(device, IMAGES_AT, twice, 2 * image->bytes);
    od_span out = od_case_output(cases, "views", 2 * count);
    if (od_case_ok(cases, od_augment_fixed(device, &shape, &simsiam, out, images, IMAGES_AT, params)))
        od_case_expect(cases, out, ref, 1e-5, 2e-4); /* 5e-5 of the pixel range, 1/80 of a grey level */
    od_buffer_release(images);
}

static void walk_golden(od_family family) {
    char path[1024], name[32];
    od_safetensors *golden;
    const char *root = getenv("OFFDIAG_SOURCE_ROOT");
    (void)snprintf(path, sizeof(path), "%s/tests/golden/augment.safetensors", root ? root : ".");
    OD_MUST(od_safetensors_open(path, &golden));
    od_device *device = od_test_device(family);
    od_cases *cases = od_cases_begin(device);
    for (int i = 0;; i++) {
        (void)snprintf(name, sizeof(name), "%d.view", i);
        if (!od_safetensors_find(golden, name))
            break;
        if (od_case(cases, "augment golden family=%s view=%d", od_family_name(family), i))
            check_golden(cases, golden, i, device);
    }
    od_safetensors_close(golden);
    od_cases_end(cases);
}

Test(augment, golden_ref) {
    walk_golden(OD_FAMILY_REF);
}
Test(augment, golden_cpu) {
    walk_golden(OD_FAMILY_CPU);
}
Test(augment, golden_gpu) {
    walk_golden(OD_FAMILY_GPU);
}

/* ---- whole views --------------------------------------------------------------------------------------------------
 */

/* Views (n, S, S, 4) of od_augment on the host; malloc'd. */
static float *augment(od_family family, const od_augment_shape *shape, const od_augment_policy *policy,
                      const uint8_t *bytes, const uint32_t *ids, uint64_t seed, uint32_t epoch, uint32_t view) {
    od_device *device = od_test_device(family);
    size_t count = (size_t)shape->n * (size_t)(shape->size * shape->size) * 4;
    size_t in = (size_t)shape->n * (size_t)(shape->h * shape->w * shape->c);
    float *out = malloc(count * sizeof(*out));
    cr_assert(out);
    od_buffer *images = upload_at(device, IMAGES_AT, bytes, in);
    od_buffer *id_buffer = upload_at(device, 4, ids, sizeof(*ids) * (size_t)shape->n);
    od_guarded g = od_guarded_create(device, count, true);
    char why[256];
    OD_MUST(od_augment(device, shape, policy, g.span, images, IMAGES_AT, id_buffer, 4, seed, epoch, view));
    od_guarded_read(&g, out);
    cr_expect(od_guarded_check(&g, why, sizeof(why)), "%s", why);
    od_guarded_release(&g);
    od_buffer_release(images);
    od_buffer_release(id_buffer);
    return out;
}

/* The device draws and applies what the host draws; each family gives the same view. */
Test(augment, drawn_equals_fixed) {
    enum { COUNT = 9 };
    const od_augment_shape shapes[] = {{COUNT, 32, 32, 3, 32}, {COUNT, 28, 28, 1, 28}, {COUNT, 50, 37, 3, 21}};
    const uint32_t ids[COUNT] = {0, 1, 2, 77, 49999, 5, 4000000000u, 7, 8};
    for (size_t s = 0; s < OD_COUNT(shapes); s++) {
        const od_augment_shape *shape = &shapes[s];
        size_t in = (size_t)COUNT * (size_t)(shape->h * shape->w * shape->c);
        size_t count = (size_t)COUNT * (size_t)(shape->size * shape->size) * 4;
        uint8_t *bytes = random_bytes(in, 3);
        od_augment_params params[COUNT];
        for (int i = 0; i < COUNT; i++)
            od_augment_draw(&params[i], &simsiam, shape->h, shape->w, 42, 6, ids[i], 1);
        od_device *device = od_test_device(OD_FAMILY_REF);
        od_buffer *images = upload_at(device, IMAGES_AT, bytes, in);
        float *fixed = malloc(count * sizeof(*fixed));
        double *ref = malloc(count * sizeof(*ref));
        od_span out;
        cr_assert(fixed && ref);
        OD_MUST(od_span_create(device, count, &out));
        OD_MUST(od_augment_fixed(device, shape, &simsiam, out, images, IMAGES_AT, params));
        OD_MUST(od_span_read(out, fixed, count));
        od_buffer_release(out.buffer);
        od_buffer_release(images);
        for (size_t i = 0; i < count; i++)
            ref[i] = fixed[i];
        for (size_t f = 0; f < OD_COUNT(families); f++) {
            float *views = augment(families[f], shape, &simsiam, bytes, ids, 42, 6, 1);
            od_comparison c = od_compare(views, ref, count, 1e-5, 2e-4);
            cr_expect(c.pass, "shape %zu, %s: %s", s, od_family_name(families[f]), c.text);
            free(views);
        }
        free(ref);
        free(fixed);
        free(bytes);
    }
}

/* A view depends on its image's id, not on its batch: the same bits. Other ids, epochs, views and seeds differ. */
Test(augment, independent_of_the_batch) {
    enum { COUNT = 7, IN = 32 * 32 * 3, OUT = 32 * 32 * 4 };
    const od_augment_shape shape = {COUNT, 32, 32, 3, 32}, one = {1, 32, 32, 3, 32};
    const uint32_t ids[COUNT] = {10, 11, 12, 13, 14, 15, 16}, backwards[COUNT] = {16, 15, 14, 13, 12, 11, 10};
    uint8_t *bytes = random_bytes(COUNT * IN, 4), *reversed = malloc(COUNT * IN);
    cr_assert(reversed);
    for (int i = 0; i < COUNT; i++)
        memcpy(reversed + i * IN, bytes + (COUNT - 1 - i) * IN, IN);
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        float *all = augment(families[f], &shape, &simsiam, bytes, ids, 1, 2, 0);
        float *again = augment(families[f], &shape, &simsiam, bytes, ids, 1, 2, 0);
        float *turned = augment(families[f], &shape, &simsiam, reversed, backwards, 1, 2, 0);
        cr_expect_arr_eq(all, again, sizeof(float) * COUNT * OUT);
        for (int i = 0; i < COUNT; i++) {
            float *single = augment(families[f], &one, &simsiam, bytes + i * IN, ids + i, 1, 2, 0);
            cr_expect_arr_eq(single, all + i * OUT, sizeof(float) * OUT);
            cr_expect_arr_eq(turned + (COUNT - 1 - i) * OUT, all + i * OUT, sizeof(float) * OUT);
            free(single);
        }
        const uint32_t other[COUNT] = {20, 21, 22, 23, 24, 25, 26};
        float *different[] = {augment(families[f], &shape, &simsiam, bytes, other, 1, 2, 0),
                              augment(families[f], &shape, &simsiam, bytes, ids, 1, 3, 0),
                              augment(families[f], &shape, &simsiam, bytes, ids, 1, 2, 1),
                              augment(families[f], &shape, &simsiam, bytes, ids, 1 + (1ull << 32), 2, 0)};
        for (size_t k = 0; k < OD_COUNT(different); k++) {
            for (int i = 0; i < COUNT; i++)
                cr_expect_arr_neq(different[k] + i * OUT, all + i * OUT, sizeof(float) * OUT);
            free(different[k]);
        }
        free(all);
        free(again);
        free(turned);
    }
    free(bytes);
    free(reversed);
}

/* Nothing drawn, or od_augment_none: the normalised image itself. */
Test(augment, identity) {
    enum { COUNT = 3, H = 20, IN = COUNT * H * H * 3 };
    const od_augment_shape shape = {COUNT, H, H, 3, H};
    od_augment_policy nothing = {.crop_scale_min = 1, .crop_scale_max = 1, .crop_ratio_min = 1, .crop_ratio_max = 1};
    memcpy(nothing.mean, simsiam.mean, sizeof(nothing.mean));
    memcpy(nothing.std, simsiam.std, sizeof(nothing.std));
    uint8_t *bytes = random_bytes(IN, 5);
    const uint32_t ids[COUNT] = {0, 1, 2};
    double ref[COUNT * H * H * 4];
    for (int p = 0; p < COUNT * H * H; p++)
        for (int k = 0; k < 4; k++)
            ref[4 * p + k] = k < 3 ? (bytes[3 * p + k] / 255.0 - (double)nothing.mean[k]) / (double)nothing.std[k] : 0;
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        float *views = augment(families[f], &shape, &nothing, bytes, ids, 1, 2, 0);
        od_comparison c = od_compare(views, ref, OD_COUNT(ref), 1e-6, 2e-6);
        cr_expect(c.pass, "%s: %s", od_family_name(families[f]), c.text);

        od_device *device = od_test_device(families[f]);
        od_buffer *images = upload_at(device, 0, bytes, IN);
        float none[OD_COUNT(ref)];
        od_span out;
        OD_MUST(od_span_create(device, OD_COUNT(ref), &out));
        OD_MUST(od_augment_none(device, &shape, &nothing, out, images, 0));
        OD_MUST(od_span_read(out, none, OD_COUNT(ref)));
        cr_expect_arr_eq(none, views, sizeof(none));
        od_buffer_release(out.buffer);
        od_buffer_release(images);
        free(views);
    }
    free(bytes);
}

/* ---- the draw -----------------------------------------------------------------------------------------------------
 */

Test(augment, draw_is_the_same_on_the_device) {
    enum { COUNT = 20000 };
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    uint32_t *ids = malloc(COUNT * sizeof(*ids));
    od_augment_params *drawn = malloc(COUNT * sizeof(*drawn)), host;
    cr_assert(ids && drawn);
    od_augment_policy wide = simsiam;
    wide.crop_ratio_min = 0.3f; /* many tries fail, some fall back */
    wide.crop_ratio_max = 3;
    for (uint32_t i = 0; i < COUNT; i++)
        ids[i] = i * 214013u;
    od_buffer *buffer = upload_at(device, 0, ids, COUNT * sizeof(*ids));
    int wrong = 0;
    for (int k = 0; k < 2; k++) {
        OD_MUST(
            od_augment_draw_on(device, drawn, k ? &wide : &simsiam, COUNT, 32, 24, buffer, 0, 0x123456789abcull, 3, 1));
        for (int i = 0; i < COUNT; i++) {
            od_augment_draw(&host, k ? &wide : &simsiam, 32, 24, 0x123456789abcull, 3, ids[i], 1);
            wrong += memcmp(&host, &drawn[i], sizeof(host)) != 0;
        }
    }
    cr_expect_eq(wrong, 0, "%d of %d draws differ", wrong, 2 * COUNT);
    od_buffer_release(buffer);
    free(drawn);
    free(ids);
}

#define EXPECT_NEAR(name, value, expected, tolerance)                                                                  \
    cr_expect(fabs((value) - (expected)) < (tolerance), "%s: %g, expected %g +- %g", (name), (value),                  \
              (double)(expected), (double)(tolerance))

/* Means over 40,000 draws; tolerances are five standard errors. Crop: torchvision's own means over 20,000 draws. */
Test(augment, draw_statistics) {
    enum { COUNT = 40000 };
    od_augment_params p;
    double area = 0, log_ratio = 0, top = 0, left = 0, flip = 0, grey = 0, jitter = 0, blur = 0, solarize = 0;
    double brightness = 0, squares = 0, hue = 0, sigma = 0;
    int orders[16] = {0};
    for (uint32_t i = 0; i < COUNT; i++) {
        od_augment_draw(&p, &simsiam, 32, 32, 11, i / 7, i, i & 1);
        cr_assert(p.crop_top >= 0 && p.crop_left >= 0 && p.crop_height >= 1 && p.crop_width >= 1);
        cr_assert(p.crop_top + p.crop_height <= 32 && p.crop_left + p.crop_width <= 32);
        cr_assert(p.brightness >= 0.6f && p.brightness <= 1.4f && p.hue >= -0.1f && p.hue <= 0.1f);
        cr_assert_eq(1 << p.order[0] | 1 << p.order[1] | 1 << p.order[2] | 1 << p.order[3], 15);
        area += (double)(p.crop_height * p.crop_width) / 1024;
        log_ratio += log((double)p.crop_width / (double)p.crop_height);
        top += (double)p.crop_top;
        left += (double)p.crop_left;
        flip += p.flip;
        grey += p.grey;
        jitter += p.jitter;
        solarize += p.solarize;
        blur += p.blur_sigma > 0;
        sigma += (double)p.blur_sigma;
        brightness += (double)p.brightness;
        squares += pow((double)p.brightness - 1, 2);
        hue += (double)p.hue;
        for (int k = 0; k < 4; k++)
            orders[4 * k + p.order[k]]++;
    }
    EXPECT_NEAR("area", area / COUNT, 0.4877, 0.0104);
    EXPECT_NEAR("log ratio", log_ratio / COUNT, 0, 0.005);
    EXPECT_NEAR("top", top / COUNT, 5.19, 0.21);
    EXPECT_NEAR("left", left / COUNT, 5.19, 0.21);
    EXPECT_NEAR("flip", flip / COUNT, 0.5, 0.0125);
    EXPECT_NEAR("grey", grey / COUNT, 0.2, 0.01);
    EXPECT_NEAR("jitter", jitter / COUNT, 0.8, 0.01);
    EXPECT_NEAR("solarise", solarize / COUNT, 0.2, 0.01);
    EXPECT_NEAR("blur", blur / COUNT, 0.5, 0.0125);
    EXPECT_NEAR("sigma", sigma / blur, 1.05, 0.02);
    EXPECT_NEAR("brightness", brightness / COUNT, 1, 0.006);
    EXPECT_NEAR("brightness variance", squares / COUNT, 0.8 * 0.8 / 12, 0.0013);
    EXPECT_NEAR("hue", hue / COUNT, 0, 0.0015);
    for (int k = 0; k < 16; k++)
        EXPECT_NEAR("order", (double)orders[k] / COUNT, 0.25, 0.011);
}

/* When no try can succeed: the largest centred crop of an allowed ratio. */
Test(augment, crop_falls_back_to_the_centre) {
    od_augment_policy policy = simsiam;
    od_augment_params p;
    policy.crop_scale_min = 0.9f;
    od_augment_draw(&p, &policy, 20, 60, 1, 0, 0, 0);
    cr_expect(p.crop_height == 20 && p.crop_width == 27 && p.crop_top == 0 && p.crop_left == 16);
    od_augment_draw(&p, &policy, 60, 20, 1, 0, 0, 0);
    cr_expect(p.crop_height == 27 && p.crop_width == 20 && p.crop_top == 16 && p.crop_left == 0);
}

/* ---- refusals -----------------------------------------------------------------------------------------------------
 */

Test(augment, refuses) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    const od_augment_shape shape = {2, 8, 8, 3, 8};
    od_buffer *images, *ids;
    od_span out;
    OD_MUST(od_buffer_create(device, 2 * 8 * 8 * 3, &images));
    OD_MUST(od_buffer_create(device, 8, &ids));
    OD_MUST(od_span_create(device, 2 * 8 * 8 * 4, &out));
    OD_MUST(od_buffer_fill(images, 0, 2 * 8 * 8 * 3, 0));
    OD_MUST(od_buffer_fill(ids, 0, 8, 0));
    OD_MUST(od_augment(device, &shape, &simsiam, out, images, 0, ids, 0, 1, 1, 0));
    OD_MUST(od_augment(device, &(od_augment_shape){0, 8, 8, 3, 8}, &simsiam, out, images, 0, ids, 0, 1, 1, 0));

    const od_augment_shape bad_shapes[] = {{3, 8, 8, 3, 8},  {2, 8, 8, 2, 8}, {2, 0, 8, 3, 8},
                                           {-1, 8, 8, 3, 8}, {2, 8, 8, 3, 3}, {2, 8, 8, 3, 9}};
    for (size_t i = 0; i < OD_COUNT(bad_shapes); i++)
        cr_expect_eq(od_augment(device, &bad_shapes[i], &simsiam, out, images, 0, ids, 0, 1, 1, 0), OD_ERR_ARGUMENT,
                     "%zu", i);
    cr_expect_eq(od_augment(device, &shape, &simsiam, out, images, 1, ids, 0, 1, 1, 0), OD_ERR_ARGUMENT);
    cr_expect_eq(od_augment(device, &shape, &simsiam, out, images, 0, ids, 4, 1, 1, 0), OD_ERR_ARGUMENT);
    cr_expect_eq(od_augment(device, &shape, &simsiam, od_span_at(out, 1), images, 0, ids, 0, 1, 1, 0), OD_ERR_ARGUMENT);
    od_augment_policy policies[6] = {simsiam, simsiam, simsiam, simsiam, simsiam, simsiam};
    policies[0].jitter_p = 1.5f;
    policies[1].crop_scale_min = 0;
    policies[2].crop_ratio_max = NAN;
    policies[3].std[1] = 0;
    policies[4].hue = 0.6f;
    policies[5].blur_sigma_min = 0;
    for (size_t i = 0; i < OD_COUNT(policies); i++)
        cr_expect_eq(od_augment(device, &shape, &policies[i], out, images, 0, ids, 0, 1, 1, 0), OD_ERR_ARGUMENT, "%zu",
                     i);
    od_augment_params params[2] = {{.crop_height = 8, .crop_width = 8}, {.crop_height = 8, .crop_width = 8}};
    OD_MUST(od_augment_fixed(device, &shape, &simsiam, out, images, 0, params));
    params[1].crop_left = 1;
    cr_expect_eq(od_augment_fixed(device, &shape, &simsiam, out, images, 0, params), OD_ERR_ARGUMENT);
    params[1].crop_left = 0;
    params[1].crop_height = 7.5f;
    cr_expect_eq(od_augment_fixed(device, &shape, &simsiam, out, images, 0, params), OD_ERR_ARGUMENT);
    od_buffer_release(images);
    od_buffer_release(ids);
    od_buffer_release(out.buffer);
}
