/* Training steps of the whole model against PyTorch in double precision: loss, every gradient, updated weights,
 * momentum, BN statistics, BYOL's target, and features in evaluation mode after them, for each head, method, loss and
 * encoder, with each family of kernels. The golden values and how they are kept: tools/make_golden.py. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/safetensors.h"
#include "harness.h"
#include "offdiag/model.h"

/* The setting of tools/make_golden.py. */
enum { PROJ_HIDDEN = 64, PROJ_DIM = 16, HEAD_HIDDEN = 32, STEPS_MAX = 8, PROJECTIONS = 32, ROW = PROJECTIONS + 1 };
static const od_optim_rates sgd = {
    .lr = 0.05f, .momentum = 0.9f, .weight_decay = 1e-4f, .head_lr = 0.5f, .head_weight_decay = 0, .ema_tau = 0.99f};

/* Relative error of a tensor: ||P (out - ref)|| / ||ref||, with P the random-sign projections over sqrt(32), so that
 * its expectation is the error of all elements. PyTorch's own float32 comes to 3e-5 here. A tensor whose norm is zero
 * in double precision (a bias in front of a batch norm has no gradient) has to stay under an absolute bound. */
static const double zero_norm = 1e-9, zero_bound = 1e-6;
static const double tolerance = 1e-4, loss_tolerance = 1e-5;

static const char *const quantities[] = {"grad", "value", "momentum", "stats", "target_value", "target_stats", "eval"};
enum { GRAD, VALUE, MOMENTUM, STATS, TARGET_VALUE, TARGET_STATS, EVAL, QUANTITIES };

/* ---- the hash that both sides share ----------------------------------------------------------------------------- */

static uint32_t salt; /* of the case at hand */

static uint32_t mix(uint32_t h) { /* MurmurHash3's finaliser */
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ h >> 16;
}

static uint32_t seed_of(const char *kind, const char *name) { /* FNV-1a of "kind:name" */
    uint32_t h = 2166136261u;
    for (const char *part = kind; *part; part++)
        h = (h ^ (unsigned char)*part) * 16777619u;
    if (*name)
        h = (h ^ ':') * 16777619u;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 16777619u;
    return h;
}

static uint32_t hash(uint32_t seed, size_t i) {
    return mix(mix((uint32_t)i * 0x9e3779b9u + salt) ^ seed);
}

static float uniform(uint32_t seed, size_t i, double offset, double scale) {
    return (float)(offset + scale * ((hash(seed, i) >> 8) * 0x1p-23 - 1));
}

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

static bool is_head(const char *name) {
    return strncmp(name, "predictor.", 10) == 0;
}

/* A tensor's start, in PyTorch's layout; kind as in make_golden.py's initial(). */
static void initial(float *stored, const char *kind, const od_param *p) {
    double offset = 0, scale = 0.1;
    if (strcmp(kind, "momentum") == 0)
        scale = 0.01;
    else if (ends_with(kind, "stats"))
        offset = ends_with(p->name, "running_var");
    else if (ends_with(p->name, "bn3.weight"))
        offset = 0.2;
    else if (p->kind == OD_PARAM_VECTOR)
        offset = ends_with(p->name, "weight");
    else if (strcmp(p->name, "predictor.V") != 0)
        scale = 1.7 / sqrt((double)p->kernel_h * p->kernel_w * p->in_stored);
    uint32_t seed = seed_of(kind, p->name);
    for (size_t i = 0; i < od_param_stored_count(p); i++)
        stored[i] = uniform(seed, i, offset, scale);
}

/* row (33) = 32 projections, or the elements of a small tensor, then the norm; as make_golden.py's summary(). */
static void summarise(double *row, const float *stored, size_t count) {
    uint32_t seed = seed_of("signs", "");
    double square = 0;
    memset(row, 0, ROW * sizeof *row);
    for (size_t i = 0; i < count; i++) {
        double x = stored[i];
        square += x * x;
        if (count <= PROJECTIONS) {
            row[i] = x;
            continue;
        }
        uint32_t bits = hash(seed, i);
        for (int k = 0; k < PROJECTIONS; k++)
            row[k] += bits >> k & 1 ? -x : x;
    }
    for (int k = 0; k < PROJECTIONS && count > PROJECTIONS; k++)
        row[k] /= sqrt(PROJECTIONS);
    row[PROJECTIONS] = sqrt(square);
}

/* ---- a golden case ---------------------------------------------------------------------------------------------- */

typedef struct golden {
    char name[80];
    od_model_config config;
    int n, steps; /* images of each view; steps, each with other images */
    float rate;   /* factor of the learning rates */
    double loss[STEPS_MAX];
    char *params, *stats;     /* names of the rows, separated by spaces */
    float *rows[QUANTITIES];  /* (tensors, 33) */
    size_t count[QUANTITIES]; /* tensors */
} golden;

static size_t words(const char *text, bool without_head) {
    size_t n = 0;
    for (const char *at = text; *at; at += strcspn(at, " "), at += strspn(at, " "))
        n += !(without_head && is_head(at));
    return n;
}

static od_safetensors *open_golden(void) {
    const char *root = getenv("OFFDIAG_SOURCE_ROOT");
    char path[1024];
    od_safetensors *file = NULL;
    snprintf(path, sizeof path, "%s/tests/golden/step.safetensors", root ? root : ".");
    OD_MUST(od_safetensors_open(path, &file));
    return file;
}

/* `label` is "<encoder>.<method>.<head>.<loss>", with "+bn" where the projector ends in a batch norm. */
static void golden_load(golden *g, const od_safetensors *file, const char *label) {
    static char encoder[24], method[16], head[16], loss[24]; /* the configuration keeps a pointer to the first */
    char key[128];
    *g = (golden){0};
    snprintf(g->name, sizeof g->name, "%.*s", (int)strcspn(label, "+"), label);
    cr_assert_eq(sscanf(g->name, "%23[^.].%15[^.].%15[^.].%23[^.]", encoder, method, head, loss), 4, "%s", label);
    char *stem = strchr(encoder, '-'); /* "resnet50-imagenet" */
    if (stem)
        *stem++ = '\0';
    g->config = (od_model_config){.encoder = encoder,
                                  .stem = !stem                       ? OD_STEM_CIFAR
                                          : strcmp(stem, "pad2") == 0 ? OD_STEM_CIFAR_PAD2
                                                                      : OD_STEM_IMAGENET,
                                  .proj_hidden = PROJ_HIDDEN,
                                  .proj_dim = PROJ_DIM,
                                  .proj_bn = strchr(label, '+') != NULL,
                                  .head_hidden = HEAD_HIDDEN,
                                  .method = strcmp(method, "byol") == 0 ? OD_BYOL : OD_SIMSIAM,
                                  .loss = strcmp(loss, "cosine") == 0 ? OD_LOSS_COSINE : OD_LOSS_NORMALIZED,
                                  .seed = 1};
    snprintf(key, sizeof key, "%s.sizes", g->name);
    cr_assert_not_null(od_safetensors_metadata(file, key), "%s", key);
    cr_assert_eq(sscanf(od_safetensors_metadata(file, key), "%d %d %d %d %f", &g->n, &g->config.image_size,
                        &g->config.width, &g->steps, &g->rate),
                 5, "%s", key);
    cr_assert(g->steps >= 1 && g->steps <= STEPS_MAX, "%s", key);
    cr_assert(od_head_parse(head, &g->config.head), "%s", head);
    snprintf(key, sizeof key, "%s.salt", g->name);
    cr_assert_not_null(od_safetensors_metadata(file, key), "%s", key);
    salt = (uint32_t)strtoul(od_safetensors_metadata(file, key), NULL, 10);
    snprintf(key, sizeof key, "%s.params", g->name);
    g->params = strdup(od_safetensors_metadata(file, key));
    snprintf(key, sizeof key, "%s.stats", g->name);
    g->stats = strdup(od_safetensors_metadata(file, key));
    snprintf(key, sizeof key, "%s/loss", g->name);
    OD_MUST(od_safetensors_read_as(file, key, OD_F64, (size_t)g->steps, g->loss));
    for (int q = 0; q < QUANTITIES; q++) {
        bool target = q == TARGET_VALUE || q == TARGET_STATS;
        if (target && g->config.method != OD_BYOL)
            continue;
        g->count[q] = q == EVAL ? 2 : words(q == STATS || q == TARGET_STATS ? g->stats : g->params, target);
        cr_assert_gt(g->count[q], 0);
        g->rows[q] = malloc(g->count[q] * ROW * sizeof(float));
        snprintf(key, sizeof key, "%s/%s", g->name, quantities[q]);
        OD_MUST(od_safetensors_read_as(file, key, OD_F32, g->count[q] * ROW, g->rows[q]));
    }
}

static void golden_free(golden *g) {
    free(g->params);
    free(g->stats);
    for (int q = 0; q < QUANTITIES; q++)
        free(g->rows[q]);
}

/* ---- the model under test --------------------------------------------------------------------------------------- */

/* Fill the first `count` floats of an arena with the starting values of its tensors. */
static void load_arena(od_span arena, const od_param_table *table, size_t count, const char *kind) {
    float *host = calloc(count + 1, sizeof *host);
    for (size_t i = 0; i < table->size; i++) {
        const od_param *p = &table->rows[i];
        if (p->offset + p->count > count)
            continue; /* a target has no head */
        float *stored = malloc(od_param_stored_count(p) * sizeof *stored);
        initial(stored, kind, p);
        od_param_from_stored(p, host + p->offset, stored);
        free(stored);
    }
    OD_MUST(od_span_write(arena, host, count));
    free(host);
}

static od_model *load_model(od_device *device, const golden *g) {
    od_model *model = NULL;
    OD_MUST(od_model_create(device, &g->config, g->n + 1, &model));
    const od_param_table *params = od_model_params(model), *stats = od_model_stats(model);
    od_model_arenas a = od_model_get_arenas(model);
    load_arena(a.value, params, params->count, "value");
    load_arena(a.momentum, params, params->count, "momentum");
    load_arena(a.stats, stats, stats->count, "stats");
    if (g->config.method == OD_BYOL) {
        load_arena(a.target_value, params, od_model_head_offset(model), "target_value");
        load_arena(a.target_stats, stats, stats->count, "target_stats");
    }
    OD_MUST(od_model_update(model));
    return model;
}

/* Both views of a step, x (2n, S, S, 4), from the hash of (2n, 3, S, S). */
static void load_images(od_span x, const golden *g, int step) {
    const size_t rows = 2 * (size_t)g->n, pixels = (size_t)g->config.image_size * g->config.image_size;
    float *host = calloc(rows * pixels * 4, sizeof *host);
    char name[16] = "";
    if (step)
        snprintf(name, sizeof name, "%d", step);
    uint32_t seed = seed_of("images", name);
    for (size_t n = 0; n < rows; n++)
        for (size_t c = 0; c < 3; c++)
            for (size_t i = 0; i < pixels; i++)
                host[(n * pixels + i) * 4 + c] = uniform(seed, (n * 3 + c) * pixels + i, 0, 1.7);
    OD_MUST(od_span_write(x, host, rows * pixels * 4));
    free(host);
}

/* ---- comparison ------------------------------------------------------------------------------------------------- */

typedef struct verdict {
    size_t compared, failed;
    double largest; /* relative error */
    char where[160], first[320];
} verdict;

static void fail(verdict *v, const char *quantity, const char *name, double error, const double *row,
                 const float *ref) {
    if (v->failed++ == 0)
        snprintf(v->first, sizeof v->first, "%s of %s: error %.3g (norm %.6g, expected %.6g)", quantity, name, error,
                 row[PROJECTIONS], ref[PROJECTIONS]);
}

static void compare_tensor(verdict *v, const char *quantity, const char *name, const double *row, const float *ref) {
    double square = 0, norm = ref[PROJECTIONS];
    for (int k = 0; k < PROJECTIONS; k++)
        square += (row[k] - ref[k]) * (row[k] - ref[k]);
    v->compared++;
    if (norm < zero_norm) {
        if (!(row[PROJECTIONS] <= zero_bound))
            fail(v, quantity, name, row[PROJECTIONS], row, ref);
        return;
    }
    /* The norm too: a tensor that is wrong in one direction may hide from projections, not from both. */
    double error = fmax(sqrt(square), fabs(row[PROJECTIONS] - norm)) / norm;
    if (!(error <= tolerance))
        fail(v, quantity, name, error, row, ref);
    if (!(error <= v->largest)) {
        v->largest = error;
        snprintf(v->where, sizeof v->where, "%s of %s", quantity, name);
    }
}

/* Each tensor that the golden values name, of one quantity. */
static void compare_quantity(verdict *v, const golden *g, int q, const od_param_table *table, od_span arena,
                             size_t count) {
    const char *at = q == STATS || q == TARGET_STATS ? g->stats : g->params;
    const float *ref = g->rows[q];
    float *host = malloc((count + 1) * sizeof *host);
    OD_MUST(od_span_read(arena, host, count));
    for (; *at; at += strcspn(at, " "), at += strspn(at, " ")) {
        char name[80];
        double row[ROW];
        if (q >= TARGET_VALUE && is_head(at))
            continue;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at, " "), at);
        const od_param *p = od_param_find(table, name);
        cr_assert_not_null(p, "%s: the model has no tensor %s", g->name, name);
        cr_assert_leq(p->offset + p->count, count, "%s: %s lies outside its arena", g->name, name);
        float *stored = malloc(od_param_stored_count(p) * sizeof *stored);
        od_param_to_stored(p, stored, host + p->offset);
        summarise(row, stored, od_param_stored_count(p));
        compare_tensor(v, quantities[q], name, row, ref);
        ref += ROW;
        free(stored);
    }
    free(host);
}

static void compare_loss(verdict *v, const golden *g, int step, od_span loss) {
    float value = NAN;
    OD_MUST(od_span_read(loss, &value, 1));
    v->compared++;
    if (!(fabs(value - g->loss[step]) <= loss_tolerance * fmax(1, fabs(g->loss[step]))) && v->failed++ == 0)
        snprintf(v->first, sizeof v->first, "loss of step %d: %.9g, expected %.9g", step, value, g->loss[step]);
}

static void compare_gradients(verdict *v, const golden *g, const od_model *model) {
    const od_param_table *params = od_model_params(model);
    cr_assert_eq(params->size, g->count[GRAD], "%s: %zu parameter tensors, expected %zu", g->name, params->size,
                 g->count[GRAD]);
    cr_assert_eq(od_model_stats(model)->size, g->count[STATS], "%s: %zu statistics, expected %zu", g->name,
                 od_model_stats(model)->size, g->count[STATS]);
    compare_quantity(v, g, GRAD, params, od_model_get_arenas(model).grad, params->count);
}

static void compare_updated(verdict *v, const golden *g, const od_model *model) {
    const od_param_table *params = od_model_params(model), *stats = od_model_stats(model);
    od_model_arenas a = od_model_get_arenas(model);
    compare_quantity(v, g, VALUE, params, a.value, params->count);
    compare_quantity(v, g, MOMENTUM, params, a.momentum, params->count);
    compare_quantity(v, g, STATS, stats, a.stats, stats->count);
    if (g->config.method == OD_BYOL) {
        compare_quantity(v, g, TARGET_VALUE, params, a.target_value, od_model_head_offset(model));
        compare_quantity(v, g, TARGET_STATS, stats, a.target_stats, stats->count);
    }
}

/* Features and projections of all images with the updated weights and running statistics. */
static void compare_eval(verdict *v, const golden *g, od_model *model, od_device *device, od_span x) {
    const int rows = 2 * g->n;
    const size_t sizes[2] = {(size_t)rows * od_model_feature_dim(model), (size_t)rows * PROJ_DIM};
    const char *const names[2] = {"features", "projections"};
    od_span spans[2];
    for (int i = 0; i < 2; i++)
        OD_MUST(od_span_create(device, sizes[i], &spans[i]));
    OD_MUST(od_model_features(model, spans[0], spans[1], x, rows));
    for (int i = 0; i < 2; i++) {
        double row[ROW];
        float *host = malloc(sizes[i] * sizeof *host);
        OD_MUST(od_span_read(spans[i], host, sizes[i]));
        summarise(row, host, sizes[i]);
        compare_tensor(v, quantities[EVAL], names[i], row, g->rows[EVAL] + (size_t)i * ROW);
        od_buffer_release(spans[i].buffer);
        free(host);
    }
}

/* ---- the tests -------------------------------------------------------------------------------------------------- */

/* The steps of case g, each in `parts` passes over the same images with weight 1 / parts: gradients and loss add up.
 * With one part everything after the updates is compared too; more passes move the BN statistics more often, and end
 * with the first step's gradients. */
static verdict run_case(od_device *device, const golden *g, int parts) {
    const size_t images = 8 * (size_t)g->n * g->config.image_size * g->config.image_size;
    verdict v = {0};
    od_span loss = OD_NO_SPAN, x = OD_NO_SPAN;
    od_optim_rates rates = sgd;
    rates.lr *= g->rate;
    rates.head_lr *= g->rate;
    od_model *model = load_model(device, g);
    OD_MUST(od_span_create(device, 1, &loss));
    OD_MUST(od_span_create(device, images, &x));
    for (int step = 0; step < (parts == 1 ? g->steps : 1); step++) {
        load_images(x, g, step);
        for (int i = 0; i < parts; i++)
            OD_MUST(od_model_step(model, loss, x, g->n, 1.0f / (float)parts, i > 0));
        compare_loss(&v, g, step, loss);
        if (step == 0)
            compare_gradients(&v, g, model);
        if (parts == 1)
            OD_MUST(od_model_optimize(model, &rates));
    }
    if (parts == 1) {
        compare_updated(&v, g, model);
        compare_eval(&v, g, model, device, x);
    }
    od_model_destroy(model);
    od_buffer_release(loss.buffer);
    od_buffer_release(x.buffer);
    return v;
}

/* The quick form: on the device's own kernels all; elsewhere two small ones, and a BYOL step of a ResNet with each
 * stem. */
static bool is_quick(const char *label, od_family family, int parts) {
    return (family == OD_FAMILY_CPU && parts == 1) || strncmp(label, "cnn4", 4) == 0 ||
           (parts == 1 && strncmp(label, "resnet18-pad2", 13) == 0) ||
           (parts == 1 && strcmp(label, "resnet18-imagenet.byol.offdiag.normalized+bn") == 0);
}

static void run_family(od_family family, int parts) {
    od_device *device = od_test_device(family);
    od_cases *cases = od_cases_begin(device);
    od_safetensors *file = open_golden();
    double largest = 0;
    char *list = strdup(od_safetensors_metadata(file, "cases")), *rest = NULL, where[256] = "";
    for (char *label = strtok_r(list, " ", &rest); label; label = strtok_r(NULL, " ", &rest)) {
        golden g;
        if (!od_test_is_whole() && !is_quick(label, family, parts))
            continue;
        if (!od_case(cases, "golden step family=%s parts=%d %s", od_family_name(family), parts, label))
            continue;
        golden_load(&g, file, label);
        verdict v = run_case(device, &g, parts);
        od_case_check(cases, v.compared > g.count[GRAD] && v.failed == 0, "%zu of %zu tensors differ; the first: %s",
                      v.failed, v.compared, v.first);
        if (v.largest > largest) {
            largest = v.largest;
            snprintf(where, sizeof where, "%s, %s", v.where, label);
        }
        golden_free(&g);
    }
    fprintf(stderr, "golden step, family %s, %d part(s): largest relative error %.2e (%s)\n", od_family_name(family),
            parts, largest, where);
    free(list);
    od_safetensors_close(file);
    od_cases_end(cases);
}

Test(golden, cpu) {
    run_family(OD_FAMILY_CPU, 1);
}

Test(golden, gpu) {
    run_family(OD_FAMILY_GPU, 1);
}

Test(golden, ref) {
    run_family(OD_FAMILY_REF, 1);
}

Test(golden, accumulated_over_two_passes) {
    run_family(OD_FAMILY_AUTO, 2);
}

/* The comparison sees a change of 3e-4 in one tensor of any quantity, in the loss, and one wrong weight in the model.
 */
Test(golden, a_perturbed_reference_fails) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_safetensors *file = open_golden();
    golden g;
    golden_load(&g, file, "cnn4.byol.mlp.cosine");
    verdict v = run_case(device, &g, 1);
    cr_assert_eq(v.failed, 0, "%s", v.first);
    for (int q = 0; q < QUANTITIES; q++) {
        float *row = g.rows[q] + (g.count[q] / 2) * ROW; /* a tensor in the middle */
        for (int k = 0; k < ROW; k++)
            row[k] *= 1.0003f;
        v = run_case(device, &g, 1);
        cr_assert_eq(v.failed, 1, "%s changed by 3e-4: %zu tensors failed", quantities[q], v.failed);
        for (int k = 0; k < ROW; k++)
            row[k] /= 1.0003f;
    }
    g.loss[0] += 1e-4;
    v = run_case(device, &g, 1);
    cr_assert_eq(v.failed, 1, "loss changed: %zu tensors failed", v.failed);
    g.loss[0] -= 1e-4;
    salt++; /* other weights and images altogether */
    v = run_case(device, &g, 1);
    cr_assert_gt(v.failed, v.compared / 2, "%zu of %zu failed", v.failed, v.compared);
    golden_free(&g);
    od_safetensors_close(file);
}
