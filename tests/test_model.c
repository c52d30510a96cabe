/* The model as a whole: its tables, its loss's gradient by finite differences, accumulation, evaluation mode. The
 * values themselves are compared with PyTorch in test_golden.c. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "model/encoder.h"
#include "offdiag/model.h"
#include "probe.h"

enum { N = 8, SIZE = 8, PROJ_DIM = 8 };

static od_model_config small_config(od_method method, od_head_kind head, od_loss_kind loss) {
    return (od_model_config){.encoder = "cnn4",
                             .width = 4,
                             .image_size = SIZE,
                             .proj_hidden = 24,
                             .proj_dim = PROJ_DIM,
                             .proj_bn = true,
                             .head_hidden = 12,
                             .head = head,
                             .method = method,
                             .loss = loss,
                             .seed = 11};
}

/* Both views of n images, (2n, S, S, 4), channel 3 zero; malloc'd. */
static float *make_images(int n) {
    size_t count = 2 * (size_t)n * SIZE * SIZE * 4;
    float *host = malloc(count * sizeof *host);
    od_data_normal(host, count, 5, 0);
    return host;
}

/* ---- tables ----------------------------------------------------------------------------------------------------- */

/* torchvision's counts less the classifier's 513,000 and 2,049,000; the CIFAR stem has 7,680 fewer. */
Test(model, resnets_have_the_published_numbers_of_parameters) {
    static const struct {
        const char *encoder;
        od_stem stem;
        size_t parameters, statistics;
    } known[] = {{"resnet18", OD_STEM_CIFAR, 11168832, 9600},
                 {"resnet18", OD_STEM_IMAGENET, 11689512 - 513000, 9600},
                 {"resnet34", OD_STEM_IMAGENET, 21797672 - 513000, 17024},
                 {"resnet50", OD_STEM_IMAGENET, 25557032 - 2049000, 53120}};
    for (size_t k = 0; k < OD_COUNT(known); k++) {
        od_model_config config = small_config(OD_SIMSIAM, OD_HEAD_OFFDIAG, OD_LOSS_NORMALIZED);
        od_param_table params, stats;
        size_t backbone = 0, statistics = 0;
        config.encoder = known[k].encoder;
        config.stem = known[k].stem;
        config.width = 64;
        config.image_size = 32;
        OD_MUST(od_model_tables(&config, &params, &stats));
        for (size_t i = 0; i < params.size; i++)
            if (strncmp(params.rows[i].name, "backbone.", 9) == 0)
                backbone += od_param_stored_count(&params.rows[i]);
        for (size_t i = 0; i < stats.size; i++)
            if (strncmp(stats.rows[i].name, "backbone.", 9) == 0)
                statistics += od_param_stored_count(&stats.rows[i]);
        cr_assert_eq(backbone, known[k].parameters, "%s: %zu", known[k].encoder, backbone);
        cr_assert_eq(statistics, known[k].statistics, "%s: %zu", known[k].encoder, statistics);
        od_param_table_free(&params);
        od_param_table_free(&stats);
    }
}

/* Tensors neither overlap nor leave the arena, names are unique, and a model's own tables are those without a device.
 */
static void check_tables(od_device *device, const od_model_config *config) {
    od_param_table tables[2];
    od_model *model = NULL;
    OD_MUST(od_model_tables(config, &tables[0], &tables[1]));
    OD_MUST(od_model_create(device, config, 2, &model));
    for (int k = 0; k < 2; k++) {
        const od_param_table *t = &tables[k], *own = k ? od_model_stats(model) : od_model_params(model);
        size_t end = 0;
        cr_assert_eq(t->size, own->size);
        cr_assert_eq(t->count, own->count);
        for (size_t i = 0; i < t->size; i++) {
            const od_param *p = &t->rows[i];
            cr_assert_geq(p->offset, end, "%s overlaps", p->name);
            end = p->offset + p->count;
            cr_assert_eq(od_param_find(t, p->name), p, "%s is there twice", p->name);
            cr_assert(strcmp(p->name, own->rows[i].name) == 0 && p->offset == own->rows[i].offset);
        }
        cr_assert_leq(end, t->count);
        od_param_table_free(&tables[k]);
    }
    const od_param *head = od_param_find(od_model_params(model), "predictor.V");
    if (config->head == OD_HEAD_OFFDIAG)
        cr_assert(head && head->offset == od_model_head_offset(model));
    else
        cr_assert_null(head);
    od_model_destroy(model);
}

Test(model, tables_are_the_same_with_and_without_a_device) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    for (int head = OD_HEAD_NONE; head <= OD_HEAD_MLP; head++) {
        od_model_config config = small_config(head % 2 ? OD_BYOL : OD_SIMSIAM, (od_head_kind)head, OD_LOSS_COSINE);
        check_tables(device, &config);
        config.encoder = "resnet18";
        check_tables(device, &config);
    }
}

Test(model, stored_layouts_are_pytorchs_and_come_back) {
    /* conv (KH, KW, Cin, Cout) = (3, 3, 4, 5) with 3 input channels outside, linear (in, out) = (7, 6), vector (9) */
    const od_param params[] = {
        {"conv", OD_PARAM_CONV, 3, 3, 4, 5, 3, 0, 180},
        {"linear", OD_PARAM_LINEAR, 1, 1, 7, 6, 7, 0, 42},
        {"vector", OD_PARAM_VECTOR, 1, 1, 1, 9, 1, 0, 9},
    };
    for (size_t k = 0; k < OD_COUNT(params); k++) {
        const od_param *p = &params[k];
        float arena[180], stored[180], back[180];
        for (size_t i = 0; i < p->count; i++)
            arena[i] = (float)i + 1;
        od_param_to_stored(p, stored, arena);
        od_param_from_stored(p, back, stored);
        for (size_t i = 0; i < p->count; i++) {
            bool padding = (int)(i / p->out) % p->in >= p->in_stored;
            cr_assert_eq(back[i], padding ? 0 : arena[i], "%s[%zu]", p->name, i);
        }
        if (k == 0) /* stored (o, i, y, x) = (4, 2, 1, 0) is tap 3, in 2, out 4 */
            cr_assert_eq(stored[((4 * 3 + 2) * 3 + 1) * 3 + 0], arena[(3 * 4 + 2) * 5 + 4]);
        if (k == 1) /* stored (out, in) = (5, 2) */
            cr_assert_eq(stored[5 * 7 + 2], arena[2 * 6 + 5]);
    }
    cr_assert_eq(od_param_stored_count(&params[0]), 135);
}

Test(model, a_wrong_size_is_refused_with_words) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_model *model = NULL;
    od_model_config config = small_config(OD_SIMSIAM, OD_HEAD_NONE, OD_LOSS_COSINE);
    cr_assert_eq(od_model_create(device, &config, 0, &model), OD_ERR_ARGUMENT);
    config.image_size = 4;
    cr_assert_eq(od_model_create(device, &config, N, &model), OD_ERR_ARGUMENT);
    cr_assert(strstr(od_error_message(), "image size 4"), "%s", od_error_message());
    config.image_size = SIZE;
    config.encoder = "vgg";
    cr_assert_eq(od_model_create(device, &config, N, &model), OD_ERR_USAGE);
    cr_assert_eq(od_device_memory(device).live, 0, "a failed model keeps memory");
}

/* ---- gradients -------------------------------------------------------------------------------------------------- */

static od_probe make_probe(od_device *device, const od_model_config *config) {
    float *images = make_images(N);
    od_probe p = od_probe_create(device, config, N, images);
    free(images);
    return p;
}

/* BYOL's target does not depend on the online weights, so the difference quotient of the loss is that of the gradient.
 */
Test(model, the_gradient_is_that_of_the_loss) {
    static const od_head_kind heads[] = {OD_HEAD_OFFDIAG, OD_HEAD_MLP, OD_HEAD_LINEAR, OD_HEAD_NONE};
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_cases *cases = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(heads); i++)
        for (int loss = OD_LOSS_COSINE; loss <= OD_LOSS_NORMALIZED; loss++) {
            od_model_config config = small_config(OD_BYOL, heads[i], (od_loss_kind)loss);
            if (!od_case(cases, "model gradient head=%s loss=%d", od_head_name(heads[i]), loss))
                continue;
            od_probe p = make_probe(device, &config);
            od_probe_check_gradient(cases, &p, 3e-2);
            od_probe_destroy(&p);
        }
    od_cases_end(cases);
}

/* The deeper encoders and the other stems: gradients, the parts of the plan that only they use. */
Test(model, every_encoder_has_the_gradient_of_its_loss) {
    static const struct {
        const char *encoder;
        od_stem stem;
        int size;
    } kinds[] = {{"resnet18", OD_STEM_CIFAR, 8},
                 {"resnet18", OD_STEM_IMAGENET, 32},
                 {"resnet34", OD_STEM_CIFAR_PAD2, 8}}; /* ResNet-50 has too many kinks: see test_golden.c */
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_cases *cases = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(kinds); i++) {
        od_model_config config = small_config(OD_BYOL, OD_HEAD_OFFDIAG, OD_LOSS_COSINE);
        config.encoder = kinds[i].encoder;
        config.stem = kinds[i].stem;
        config.width = 2;
        config.image_size = kinds[i].size;
        if (!od_case(cases, "encoder gradient %s stem=%s", config.encoder, od_stem_names[config.stem]))
            continue;
        float *images = od_case_normals(cases, 2 * (size_t)N * config.image_size * config.image_size * 4, 5);
        od_probe p = od_probe_create(device, &config, N, images);
        od_probe_check_gradient(cases, &p, 5e-2);
        od_probe_destroy(&p);
    }
    od_cases_end(cases);
}

/* Block sums that are made again for the backward pass are those of the forward pass. */
Test(model, making_sums_again_changes_no_bit) {
    static const char *const encoders[] = {"cnn4", "resnet18", "resnet34", "resnet50"};
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    const size_t limit = od_encoder_keep_limit;
    for (size_t i = 0; i < OD_COUNT(encoders); i++) {
        float *grads[2];
        size_t count = 0;
        for (int again = 0; again < 2; again++) {
            od_model_config config = small_config(OD_BYOL, OD_HEAD_OFFDIAG, OD_LOSS_COSINE);
            config.encoder = encoders[i];
            od_encoder_keep_limit = again ? 0 : limit;
            od_probe p = make_probe(device, &config);
            OD_MUST(od_model_step(p.model, p.loss, p.x, N, 1, false));
            count = p.count;
            grads[again] = od_span_to_host(od_model_get_arenas(p.model).grad, count);
            od_probe_destroy(&p);
        }
        cr_assert(memcmp(grads[0], grads[1], count * sizeof *grads[0]) == 0, "%s", encoders[i]);
        free(grads[0]);
        free(grads[1]);
    }
    od_encoder_keep_limit = limit;
}

/* V's diagonal has no gradient, and the diagonal of W is 1 whatever V's is. */
Test(model, the_head_ignores_its_diagonal) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_model_config config = small_config(OD_SIMSIAM, OD_HEAD_OFFDIAG, OD_LOSS_NORMALIZED);
    od_probe p = make_probe(device, &config);
    size_t v = od_param_find(od_model_params(p.model), "predictor.V")->offset;
    od_model_arenas a = od_model_get_arenas(p.model);
    double before = NAN, after = NAN, *w = malloc(p.count * sizeof *w);
    float *value = od_span_to_host(a.value, p.count);
    for (size_t i = 0; i < p.count; i++)
        w[i] = value[i];
    OD_MUST(od_probe_loss(&p, w, p.count, &before));
    float *gradient = od_span_to_host(a.grad, p.count);
    for (size_t i = 0; i < PROJ_DIM; i++) {
        cr_assert_eq(gradient[v + i * (PROJ_DIM + 1)], 0);
        w[v + i * (PROJ_DIM + 1)] = 3;
    }
    cr_assert_neq(gradient[v + 1], 0);
    OD_MUST(od_probe_loss(&p, w, p.count, &after));
    cr_assert_eq(before, after);
    free(w);
    free(value);
    free(gradient);
    od_probe_destroy(&p);
}

/* Two passes over the same images add up to twice one pass; a scale is a factor. */
Test(model, gradients_and_loss_accumulate) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    for (int head = OD_HEAD_NONE; head <= OD_HEAD_MLP; head++) {
        od_model_config config = small_config(OD_SIMSIAM, (od_head_kind)head, OD_LOSS_NORMALIZED);
        od_probe p = make_probe(device, &config);
        od_span grad = od_model_get_arenas(p.model).grad;
        double difference = 0, norm = 0;
        OD_MUST(od_model_step(p.model, p.loss, p.x, N, 1, false));
        float *once = od_span_to_host(grad, p.count), *loss_once = od_span_to_host(p.loss, 1);
        OD_MUST(od_model_step(p.model, p.loss, p.x, N, 0.5f, false));
        OD_MUST(od_model_step(p.model, p.loss, p.x, N, 1.5f, true));
        float *twice = od_span_to_host(grad, p.count), *loss_twice = od_span_to_host(p.loss, 1);
        for (size_t i = 0; i < p.count; i++) {
            difference += pow(twice[i] - 2.0 * once[i], 2);
            norm += pow(2.0 * once[i], 2);
        }
        cr_assert_gt(norm, 1e-6);
        cr_assert_lt(sqrt(difference / norm), 2e-6, "head %s", od_head_name((od_head_kind)head));
        cr_assert_float_eq(*loss_twice, 2 * *loss_once, 1e-6F * fabsf(*loss_once) + 1e-7F);
        free(once);
        free(twice);
        free(loss_once);
        free(loss_twice);
        od_probe_destroy(&p);
    }
}

/* A step of a network wide enough for every variant, fused and transformed ones included, against plain kernels. */
Test(model, families_agree_on_a_wide_step) {
    od_test_needs_whole();
    static const od_family families[] = {OD_FAMILY_REF, OD_FAMILY_CPU};
    float *grads[2] = {NULL, NULL}, losses[2] = {NAN, NAN};
    size_t count = 0;
    if (!od_test_affords(3e8))
        return;
    for (int f = 0; f < 2; f++) {
        od_device *device = od_test_device(families[f]);
        od_model_config config = small_config(OD_SIMSIAM, OD_HEAD_MLP, OD_LOSS_COSINE);
        config.encoder = "resnet18";
        config.width = 32;
        od_probe p = make_probe(device, &config);
        OD_MUST(od_model_step(p.model, p.loss, p.x, N, 1, false));
        OD_MUST(od_span_read(p.loss, &losses[f], 1));
        count = p.count;
        grads[f] = od_span_to_host(od_model_get_arenas(p.model).grad, count);
        od_probe_destroy(&p);
    }
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        difference += pow((double)grads[1][i] - grads[0][i], 2);
        norm += pow(grads[0][i], 2);
    }
    cr_assert_gt(norm, 1e-6);
    cr_assert_lt(sqrt(difference / norm), 1e-4, "%.3g", sqrt(difference / norm));
    cr_assert_float_eq(losses[0], losses[1], 1e-5);
    fprintf(stderr, "wide step, cpu against ref: relative error %.2e\n", sqrt(difference / norm));
    free(grads[0]);
    free(grads[1]);
}

/* ---- evaluation mode -------------------------------------------------------------------------------------------- */

/* An image's features do not depend on its company, nor does asking for them change anything. */
Test(model, features_do_not_depend_on_the_batch) {
    enum { IMAGES = 2 * N };
    static const char *const encoders[] = {"cnn4", "resnet18"};
    static const int sizes[] = {1, 3, 5, IMAGES};
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    for (size_t e = 0; e < OD_COUNT(encoders); e++) {
        od_model_config config = small_config(OD_SIMSIAM, OD_HEAD_NONE, OD_LOSS_COSINE);
        config.encoder = encoders[e];
        od_probe p = make_probe(device, &config);
        OD_MUST(od_model_step(p.model, p.loss, p.x, N, 1, false)); /* running statistics other than 0 and 1 */
        size_t d = (size_t)od_model_feature_dim(p.model), image = (size_t)SIZE * SIZE * 4;
        od_span features = OD_NO_SPAN, z = OD_NO_SPAN;
        OD_MUST(od_span_create(device, IMAGES * d, &features));
        OD_MUST(od_span_create(device, (size_t)IMAGES * PROJ_DIM, &z));
        OD_MUST(od_model_features(p.model, features, z, p.x, IMAGES));
        float *all = od_span_to_host(features, IMAGES * d), *all_z = od_span_to_host(z, (size_t)IMAGES * PROJ_DIM);
        for (size_t k = 0; k < OD_COUNT(sizes); k++) {
            int first = IMAGES - sizes[k];
            OD_MUST(od_model_features(p.model, features, z, od_span_at(p.x, first * image), sizes[k]));
            float *some = od_span_to_host(features, sizes[k] * d),
                  *some_z = od_span_to_host(z, (size_t)sizes[k] * PROJ_DIM);
            for (size_t i = 0; i < sizes[k] * d; i++)
                cr_assert_float_eq(some[i], all[first * d + i], 1e-6, "%s n=%d [%zu]", encoders[e], sizes[k], i);
            for (size_t i = 0; i < (size_t)sizes[k] * PROJ_DIM; i++)
                cr_assert_float_eq(some_z[i], all_z[(size_t)first * PROJ_DIM + i], 1e-5);
            free(some);
            free(some_z);
        }
        free(all);
        free(all_z);
        od_buffer_release(features.buffer);
        od_buffer_release(z.buffer);
        od_probe_destroy(&p);
    }
}
