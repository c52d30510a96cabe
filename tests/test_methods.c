/* What methods are made of: losses and output normalisation in a model, ablations, three-layer projectors, DirectPred,
 * and each optimiser over a model's tensors. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "model/directpred.h"
#include "offdiag/model.h"
#include "probe.h"
#include "reference/optim_ref.h"

enum { N = 8, SIZE = 8, DIM = 8 };

typedef struct method {
    const char *name;
    od_model_config config; /* what differs from the small model */
} method;

static const method methods[] = {
    {"cosine + bn", {.loss = OD_LOSS_COSINE, .out_norm = OD_OUT_BN}},
    {"cosine + l2, one-sided", {.loss = OD_LOSS_COSINE, .out_norm = OD_OUT_L2, .one_sided = true}},
    {"squared + none", {.loss = OD_LOSS_NORMALIZED, .out_norm = OD_OUT_NONE}},
    {"squared + l2", {.loss = OD_LOSS_NORMALIZED, .out_norm = OD_OUT_L2, .head = OD_HEAD_MLP}},
    {"squared + bn, one-sided", {.loss = OD_LOSS_NORMALIZED, .one_sided = true}},
    {"three-layer projector", {.loss = OD_LOSS_COSINE, .proj_layers = 3, .head = OD_HEAD_MLP}},
    {"directpred", {.loss = OD_LOSS_COSINE, .head = OD_HEAD_DIRECTPRED}},
    /* SimSiam's gradient is that of its loss only without stop-gradient */
    {"no stop-gradient, cosine", {.loss = OD_LOSS_COSINE, .target_gradient = true}},
    {"no stop-gradient, none", {.loss = OD_LOSS_COSINE, .target_gradient = true, .head = OD_HEAD_NONE}},
    {"no stop-gradient, bn", {.loss = OD_LOSS_NORMALIZED, .target_gradient = true}},
    {"no stop-gradient, one-sided l2",
     {.loss = OD_LOSS_NORMALIZED, .out_norm = OD_OUT_L2, .target_gradient = true, .one_sided = true}},
};

static od_model_config small(const od_model_config *differs) {
    od_model_config c = *differs;
    c.encoder = "cnn4";
    c.width = 4;
    c.image_size = SIZE;
    c.proj_hidden = 24;
    c.proj_dim = DIM;
    c.proj_bn = true;
    c.head_hidden = 12;
    c.method = c.target_gradient ? OD_SIMSIAM : OD_BYOL;
    c.directpred_rho = 0.3f;
    c.directpred_eps = 0.05f;
    c.seed = 11;
    return c;
}

/* `swapped`: the views change places. */
static od_probe make_probe(od_device *device, const od_model_config *config, bool swapped) {
    enum { VIEW = N * SIZE * SIZE * 4 };
    float host[2 * VIEW];
    od_data_normal(host + (swapped ? VIEW : 0), VIEW, 5, 0);
    od_data_normal(host + (swapped ? 0 : VIEW), VIEW, 5, 1);
    return od_probe_create(device, config, N, host);
}

/* ---- losses ----------------------------------------------------------------------------------------------------- */

Test(methods, gradients_are_those_of_the_losses) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_cases *cases = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(methods); i++) {
        od_model_config config = small(&methods[i].config);
        if (!od_case(cases, "gradient of %s", methods[i].name))
            continue;
        od_probe p = make_probe(device, &config, false);
        od_probe_check_gradient(cases, &p, 3e-2);
        od_probe_destroy(&p);
    }
    od_cases_end(cases);
}

/* The first loss of a model. */
static double first_loss(od_device *device, od_model_config differs, bool swapped) {
    od_model_config config = small(&differs);
    od_probe p = make_probe(device, &config, swapped);
    float value = NAN;
    OD_MUST(od_model_step(p.model, p.loss, p.x, N, 1, false));
    OD_MUST(od_span_read(p.loss, &value, 1));
    od_probe_destroy(&p);
    return value;
}

Test(methods, losses_agree_with_each_other) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    const od_model_config cosine = {.loss = OD_LOSS_COSINE, .head = OD_HEAD_MLP};
    od_model_config l2 = cosine, squared = cosine, one = cosine, bn = cosine;
    double value = first_loss(device, cosine, false);
    cr_assert(isfinite(value) && fabs(value) > 1e-4);
    l2.out_norm = OD_OUT_L2;
    cr_assert_float_eq(first_loss(device, l2, false), value, 1e-6);
    squared.loss = OD_LOSS_NORMALIZED;
    squared.out_norm = OD_OUT_L2; /* BYOL's 2 - 2 cos */
    cr_assert_float_eq(first_loss(device, squared, false), 2 + 2 * value, 5e-6);
    squared.out_norm = OD_OUT_BN;
    bn.loss = OD_LOSS_NORMALIZED; /* auto */
    cr_assert_eq(first_loss(device, squared, false), first_loss(device, bn, false));
    one.one_sided = true;
    double there = first_loss(device, one, false), back = first_loss(device, one, true);
    cr_assert_gt(fabs(there - back), 1e-5);
    cr_assert_float_eq(there + back, 2 * value, 1e-6);
}

Test(methods, byol_without_stop_gradient_is_refused) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_model_config config = small(&(od_model_config){.target_gradient = true});
    od_model *model = NULL;
    config.method = OD_BYOL;
    cr_assert_eq(od_model_create(device, &config, N, &model), OD_ERR_ARGUMENT);
    cr_assert(strstr(od_error_message(), "SimSiam"), "%s", od_error_message());
}

/* ---- the projector ---------------------------------------------------------------------------------------------- */

Test(methods, a_projector_of_three_layers_has_pytorchs_names) {
    static const char *const names[] = {"projector.0.weight", "projector.1.weight", "projector.1.bias",
                                        "projector.3.weight", "projector.4.weight", "projector.4.bias",
                                        "projector.6.weight"};
    od_model_config config = small(&(od_model_config){.proj_layers = 3});
    od_param_table params, stats;
    size_t found = 0;
    OD_MUST(od_model_tables(&config, &params, &stats));
    for (size_t i = 0; i < params.size; i++)
        found += strncmp(params.rows[i].name, "projector.", 10) == 0;
    cr_assert_eq(found, OD_COUNT(names));
    for (size_t i = 0; i < OD_COUNT(names); i++)
        cr_assert_not_null(od_param_find(&params, names[i]), "%s", names[i]);
    cr_assert_not_null(od_param_find(&stats, "projector.7.running_var"));
    cr_assert_eq(od_param_find(&params, "projector.3.weight")->in, 24);
    od_param_table_free(&params);
    od_param_table_free(&stats);
    config.proj_layers = 4;
    cr_assert_eq(od_model_tables(&config, &params, &stats), OD_ERR_ARGUMENT);
}

/* ---- DirectPred ------------------------------------------------------------------------------------------------- */

/* From numpy.linalg.eigh, with eps 0.05; f is a^T a of a (7, 5) matrix. */
Test(methods, directpred_sets_the_weight_that_numpy_sets) {
    enum { D = 5 };
    static const float f[D * D] = {5.28125f,   -3.625f,    -0.046875f, -2.234375f, 1.71875f,  -3.625f,  16.46875f,
                                   -0.40625f,  2.671875f,  13.265625f, -0.046875f, -0.40625f, 1.40625f, 0.25f,
                                   -0.421875f, -2.234375f, 2.671875f,  0.25f,      3.25f,     0.34375f, 1.71875f,
                                   13.265625f, -0.421875f, 0.34375f,   15.5f};
    static const double golden[D * D] = {0.38859749,   -0.187395139, -0.002423353, -0.088526094, 0.145104998,
                                         -0.187395139, 0.639781715,  -0.014703951, 0.088524012,  0.40758028,
                                         -0.002423353, -0.014703951, 0.266640837,  0.018015781,  -0.009653791,
                                         -0.088526094, 0.088524012,  0.018015781,  0.356239349,  -0.012893057,
                                         0.145104998,  0.40758028,   -0.009653791, -0.012893057, 0.630452111};
    float w[D * D], bad[D * D];
    OD_MUST(od_directpred_weight(w, f, D, 0.05f));
    for (int i = 0; i < D * D; i++)
        cr_assert_float_eq(w[i], golden[i], 2e-7, "[%d] %.9g, expected %.9g", i, w[i], golden[i]);
    memcpy(bad, f, sizeof bad);
    bad[7] = NAN;
    cr_assert_eq(od_directpred_weight(w, bad, D, 0.05f), OD_ERR_NUMERIC);
}

/* F starts with the first step's correlations and moves by 0.7 after it; W follows every second step. */
Test(methods, directpred_follows_the_projections) {
    enum { D2 = DIM * DIM };
    const od_optim_rates rates = {.lr = 0.1f, .ema_tau = 0.99f};
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_model_config config = small(&(od_model_config){.loss = OD_LOSS_COSINE, .head = OD_HEAD_DIRECTPRED});
    float f[D2] = {0}, expected[D2], *w = NULL, norm = 0, largest = 0;
    config.directpred_every = 2;
    od_probe p = make_probe(device, &config, false);
    const od_param_table *stats = od_model_stats(p.model);
    od_span where = od_model_get_arenas(p.model).stats;
    size_t w_at = od_param_find(stats, "predictor.W")->offset,
           f_at = od_param_find(stats, "predictor.correlation")->offset;
    cr_assert_null(od_param_find(od_model_params(p.model), "predictor.W"));
    w = od_span_to_host(od_span_at(where, w_at), D2);
    for (int i = 0; i < D2; i++)
        cr_assert_eq(w[i], i % (DIM + 1) == 0 ? 1 : 0, "W is not the identity at the start");
    for (uint64_t step = 0; step < 4; step++) {
        od_optim_rates now = rates;
        now.step = step;
        free(w);
        /* in two parts, as micro-batches */
        memset(expected, 0, sizeof expected);
        for (int part = 0; part < 2; part++) {
            OD_MUST(od_model_step(p.model, p.loss, p.x, part ? N : N / 2, 0.5f, part > 0));
            int rows = part ? 2 * N : N;
            float *z = od_span_to_host(od_model_projection(p.model), (size_t)rows * DIM);
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < D2; i++)
                    expected[i] += z[r * DIM + i / DIM] * z[r * DIM + i % DIM] / (3 * N);
            free(z);
        }
        OD_MUST(od_model_optimize(p.model, &now));
        float *found = od_span_to_host(od_span_at(where, f_at), D2);
        for (int i = 0; i < D2; i++) {
            f[i] = step ? 0.3f * f[i] + 0.7f * expected[i] : expected[i];
            cr_assert_float_eq(found[i], f[i], 1e-5, "step %d: F[%d] %g, expected %g", (int)step, i, found[i], f[i]);
        }
        if (step % 2 == 0)
            OD_MUST(od_directpred_weight(expected, found, DIM, config.directpred_eps));
        static float last[D2];
        w = od_span_to_host(od_span_at(where, w_at), D2);
        for (int i = 0; i < D2; i++)
            cr_assert_float_eq(w[i], step % 2 == 0 ? expected[i] : last[i], 1e-7, "step %d: W[%d]", (int)step, i);
        memcpy(last, w, sizeof last);
        free(found);
    }
    OD_MUST(od_model_offdiag(p.model, &norm, &largest));
    cr_assert(norm > 1e-3f && largest > 1e-4f && largest <= norm);
    free(w);
    od_probe_destroy(&p);
}

/* ---- optimisers over a model ------------------------------------------------------------------------------------ */

/* One tensor's reference step, by name and kind: the model decides who adapts and who decays. */
static void reference_step(od_optimizer optimizer, const od_param *p, double *w, double *m, double *v, const float *g,
                           const od_optim_rates *r) {
    bool head = strncmp(p->name, "predictor.", 10) == 0, matrix = p->kind != OD_PARAM_VECTOR;
    double lr = head ? r->head_lr : r->lr, wd = head ? r->head_weight_decay : r->weight_decay;
    const double betas[2] = {r->momentum, r->beta2};
    if (optimizer == OD_SGD)
        optim_ref_sgd(w, m, g, p->count, lr, r->momentum, wd);
    else if (optimizer == OD_LARS)
        optim_ref_lars(w, m, g, p->count, lr, r->momentum, wd, r->lars_eta,
                       matrix && strcmp(p->name, "predictor.V") != 0, matrix);
    else
        optim_ref_adam(w, m, v, g, p->count, lr, betas, wd, optimizer == OD_ADAMW, (int)r->step + 1);
}

static void expect_arena(od_cases *cases, const char *name, od_span arena, const double *ref, size_t count,
                         double tolerance) {
    float *host = od_span_to_host(arena, count);
    (void)od_case_expect_host(cases, name, host, ref, count, tolerance, 0);
    free(host);
}

Test(methods, optimizers_step_a_whole_model) {
    static const od_head_kind heads[] = {OD_HEAD_OFFDIAG, OD_HEAD_MLP};
    od_optim_rates rates = {.lr = 0.05f,
                            .momentum = 0.9f,
                            .weight_decay = 1e-2f,
                            .head_lr = 0.2f,
                            .head_weight_decay = 5e-3f,
                            .ema_tau = 0.9f,
                            .beta2 = 0.99f,
                            .lars_eta = 0.02f};
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_cases *cases = od_cases_begin(device);
    for (int k = 0; od_optimizer_names[k]; k++)
        for (size_t h = 0; h < OD_COUNT(heads); h++) {
            od_model_config config = small(&(od_model_config){.head = heads[h], .optimizer = (od_optimizer)k});
            if (!od_case(cases, "optimizer %s head=%s", od_optimizer_names[k], od_head_name(heads[h])))
                continue;
            od_probe p = make_probe(device, &config, false);
            const od_param_table *params = od_model_params(p.model);
            od_model_arenas a = od_model_get_arenas(p.model);
            size_t head = od_model_head_offset(p.model);
            double *w = od_case_alloc(cases, p.count * sizeof *w), *m = od_case_alloc(cases, p.count * sizeof *m);
            double *v = od_case_alloc(cases, p.count * sizeof *v), *t = od_case_alloc(cases, p.count * sizeof *t);
            float *start = od_span_to_host(a.value, p.count);
            for (size_t i = 0; i < p.count; i++)
                w[i] = t[i] = start[i];
            free(start);
            for (rates.step = 0; rates.step < 3; rates.step++) {
                OD_MUST(od_model_step(p.model, p.loss, p.x, N, 1, false));
                float *g = od_span_to_host(a.grad, p.count);
                OD_MUST(od_model_optimize(p.model, &rates));
                for (size_t i = 0; i < params->size; i++) {
                    size_t at = params->rows[i].offset;
                    reference_step(config.optimizer, &params->rows[i], w + at, m + at, v + at, g + at, &rates);
                }
                optim_ref_average(t, w, head, rates.ema_tau);
                free(g);
            }
            expect_arena(cases, "parameters", a.value, w, p.count, 2e-6);
            expect_arena(cases, "momentum", a.momentum, m, p.count, 2e-5);
            expect_arena(cases, "target", a.target_value, t, head, 2e-6);
            od_case_check(cases, (a.second.buffer != NULL) == (k >= OD_ADAM), "the second moment");
            if (a.second.buffer)
                expect_arena(cases, "second moment", a.second, v, p.count, 2e-5);
            od_probe_destroy(&p);
        }
    od_cases_end(cases);
}
