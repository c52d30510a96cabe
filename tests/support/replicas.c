#include "replicas.h"

#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/team.h"
#include "harness.h"

enum { N = REPLICA_IMAGES, IMAGE_MOST = REPLICA_SIDE_MOST * REPLICA_SIDE_MOST * 4 };

typedef struct replica {
    pthread_t thread;
    od_device *device;
    od_member *member; /* NULL: alone */
    const od_model_config *config;
    int first, n, parts; /* its images of each view, in so many passes */
    int steps;
    od_status status;
    char message[400];
    replica_outcome out;
} replica;

/* ---- what is run ------------------------------------------------------------------------------------------------ */

const replica_split replica_splits[] = {{"1:1", {16, 16}, 2, 1},
                                        {"5:3", {20, 12}, 2, 1},
                                        {"31:1", {31, 1}, 2, 1},
                                        {"5:4:7", {10, 8, 14}, 3, 1},
                                        {"1:1 in two passes", {16, 16}, 2, 2}};
const size_t replica_split_count = OD_COUNT(replica_splits);

static const struct {
    const char *name;
    od_model_config config;
} methods[] = {
    {"simsiam, none", {.head = OD_HEAD_NONE, .loss = OD_LOSS_NORMALIZED}},
    {"simsiam, offdiag", {.head = OD_HEAD_OFFDIAG, .loss = OD_LOSS_NORMALIZED}},
    {"simsiam, linear, cosine", {.head = OD_HEAD_LINEAR, .loss = OD_LOSS_COSINE}},
    {"simsiam, mlp", {.head = OD_HEAD_MLP, .loss = OD_LOSS_COSINE, .one_sided = true}},
    {"simsiam, no stop-gradient", {.head = OD_HEAD_MLP, .loss = OD_LOSS_NORMALIZED, .target_gradient = true}},
    {"byol, offdiag", {.method = OD_BYOL, .head = OD_HEAD_OFFDIAG, .loss = OD_LOSS_NORMALIZED}},
    {"byol, mlp, lars", {.method = OD_BYOL, .head = OD_HEAD_MLP, .loss = OD_LOSS_COSINE, .optimizer = OD_LARS}},
    {"byol, directpred, adam", {.method = OD_BYOL, .head = OD_HEAD_DIRECTPRED, .optimizer = OD_ADAM}},
    {"byol, none, l2", {.method = OD_BYOL, .head = OD_HEAD_NONE, .out_norm = OD_OUT_L2}},
    {"byol, linear, cosine", {.method = OD_BYOL, .head = OD_HEAD_LINEAR, .loss = OD_LOSS_COSINE}},
    {"simsiam, directpred", {.head = OD_HEAD_DIRECTPRED, .loss = OD_LOSS_COSINE}},
};
const size_t replica_method_count = OD_COUNT(methods);

const char *replica_method_name(size_t method) {
    return methods[method].name;
}

od_model_config replica_config(size_t method, const char *encoder, int side) {
    od_model_config c = methods[method].config;
    c.encoder = encoder;
    c.width = 4;
    c.image_size = side;
    c.proj_hidden = 12;
    c.proj_dim = 8;
    c.proj_bn = method % 2;
    c.head_hidden = 6;
    c.directpred_rho = 0.3f;
    c.directpred_eps = 0.05f;
    c.seed = 11;
    return c;
}

static float images[2 * N * IMAGE_MOST]; /* (2N, S, S, 4) */

static size_t image_size(const od_model_config *c) {
    return (size_t)c->image_size * c->image_size * 4;
}

/* Noise; the fourth channel is zero. */
static void draw(const od_model_config *c) {
    const size_t count = 2 * N * image_size(c);
    od_data_normal(images, count, 5, 0);
    for (size_t i = 3; i < count; i += 4)
        images[i] = 0;
}

/* ---- a replica -------------------------------------------------------------------------------------------------- */

/* x (2n, S, S, 4): both views of images first .. first + n - 1. */
static od_status upload(const replica *r, od_span x, int first, int n) {
    const size_t image = image_size(r->config), view = (size_t)n * image;
    od_status status = od_span_write(x, images + (size_t)first * image, view);
    return status ? status : od_span_write(od_span_at(x, view), images + (size_t)(N + first) * image, view);
}

static od_status step(replica *r, od_model *model, od_span loss, od_span x, uint64_t at) {
    const od_optim_rates rates = {
        .lr = 0.05f, .momentum = 0.9f, .weight_decay = 1e-4f, .head_lr = 0.2f, .ema_tau = 0.9f, .step = at};
    const int all = N / r->parts, n = r->n / r->parts;
    float value = 0;
    od_status status = OD_OK;
    for (int part = 0; part < r->parts; part++) {
        const float scale = (float)n / (float)all / (float)r->parts;
        od_model_set_final(model, part == r->parts - 1);
        if ((status = upload(r, x, part * all + r->first / r->parts, n)) ||
            (status = od_model_step(model, loss, x, n, scale, part > 0)))
            return status;
    }
    if ((status = od_model_reduce(model)) || (status = od_span_read(loss, &value, 1)))
        return status;
    r->out.loss = value;
    if (r->member && (status = od_member_sum(r->member, &r->out.loss, 1)))
        return status;
    if ((status = od_span_read(od_model_get_arenas(model).grad, r->out.grad.values, od_model_params(model)->count)))
        return status;
    return od_model_optimize(model, &rates);
}

static void make_arena(replica_arena *a, const od_param_table *table) {
    *a = (replica_arena){.values = calloc(table->count, sizeof *a->values),
                         .rows = calloc(table->size, sizeof *a->rows),
                         .count = table->size};
    if (a->values && a->rows)
        memcpy(a->rows, table->rows, table->size * sizeof *a->rows);
}

static od_status run(replica *r) {
    od_model *model = NULL;
    od_span loss = OD_NO_SPAN, x = OD_NO_SPAN;
    od_status status = OD_OK;
    if ((status = od_model_create(r->device, r->config, r->n / r->parts, &model)) ||
        (r->member && ((status = od_model_join(model, r->member)) || (status = od_model_sync(model)))) ||
        (status = od_span_create(r->device, 1, &loss)) ||
        (status = od_span_create(r->device, (size_t)2 * r->n * image_size(r->config), &x)))
        goto out;
    const od_model_arenas a = od_model_get_arenas(model);
    make_arena(&r->out.grad, od_model_params(model));
    make_arena(&r->out.value, od_model_params(model));
    make_arena(&r->out.stats, od_model_stats(model));
    if (a.target_stats.buffer)
        make_arena(&r->out.target, od_model_stats(model));
    for (uint64_t at = 0; at < (uint64_t)r->steps && !status; at++)
        status = step(r, model, loss, x, at);
    if (!status && !(status = od_span_read(a.value, r->out.value.values, od_model_params(model)->count)) &&
        !(status = od_span_read(a.stats, r->out.stats.values, od_model_stats(model)->count)) && a.target_stats.buffer)
        status = od_span_read(a.target_stats, r->out.target.values, od_model_stats(model)->count);
out:
    od_buffer_release(loss.buffer);
    od_buffer_release(x.buffer);
    od_model_destroy(model);
    return status;
}

static void *run_thread(void *context) {
    replica *r = context;
    r->status = run(r);
    if (r->member)
        r->status = od_member_agree(r->member, r->status);
    (void)snprintf(r->message, sizeof r->message, "%s", r->status ? od_error_message() : "");
    return NULL;
}

static void free_arena(replica_arena *a) {
    free(a->values);
    free(a->rows);
    *a = (replica_arena){0};
}

void replica_outcome_free(replica_outcome *o) {
    free_arena(&o->grad);
    free_arena(&o->value);
    free_arena(&o->stats);
    free_arena(&o->target);
}

/* ---- alone and together ----------------------------------------------------------------------------------------- */

replica_outcome replica_alone(od_device *device, const od_model_config *config, int parts, int steps) {
    replica r = {.device = device, .config = config, .n = N, .parts = parts, .steps = steps};
    draw(config);
    cr_assert_eq(run(&r), OD_OK, "%s", od_error_message());
    return r.out;
}

static size_t arena_size(const replica_arena *a) {
    size_t size = 0;
    for (size_t i = 0; i < a->count; i++)
        size = a->rows[i].offset + a->rows[i].count > size ? a->rows[i].offset + a->rows[i].count : size;
    return size;
}

static bool same_bits(const replica_arena *a, const replica_arena *b) {
    return memcmp(a->values, b->values, arena_size(a) * sizeof *a->values) == 0;
}

static bool alike(od_device *a, od_device *b) {
    return od_device_family(a) == od_device_family(b) &&
           strcmp(od_device_get_info(a)->platform, od_device_get_info(b)->platform) == 0;
}

replica_outcome replica_team(od_device *const *devices, const od_model_config *config, const replica_split *split,
                             int steps) {
    replica r[REPLICAS_MOST];
    od_team *team = NULL;
    int first = 0;
    draw(config);
    cr_assert_eq(od_team_create(&team, split->members), OD_OK);
    for (int i = 0; i < split->members; first += split->shares[i++]) {
        r[i] = (replica){.device = devices[i],
                         .member = od_team_member(team, i),
                         .config = config,
                         .first = first,
                         .n = split->shares[i],
                         .parts = split->parts,
                         .steps = steps};
        cr_assert_eq(pthread_create(&r[i].thread, NULL, run_thread, &r[i]), 0);
    }
    for (int i = 0; i < split->members; i++)
        pthread_join(r[i].thread, NULL);
    for (int i = 0; i < split->members; i++) {
        cr_assert_eq(r[i].status, OD_OK, "%s", r[i].message);
        cr_assert(same_bits(&r[i].out.grad, &r[0].out.grad), "gradients of member %d", i);
        cr_assert(!alike(devices[i], devices[0]) || same_bits(&r[i].out.value, &r[0].out.value), "weights of member %d",
                  i);
        cr_assert(!alike(devices[i], devices[0]) || same_bits(&r[i].out.stats, &r[0].out.stats),
                  "statistics of member %d", i);
        if (i > 0)
            replica_outcome_free(&r[i].out);
    }
    od_team_destroy(team);
    return r[0].out;
}

/* ---- comparison ------------------------------------------------------------------------------------------------- */

static double square(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)a[i] - (b ? b[i] : 0)) * ((double)a[i] - (b ? b[i] : 0));
    return sum;
}

double replica_distance(const replica_arena *a, const replica_arena *b) {
    const size_t n = arena_size(b);
    return sqrt(square(a->values, b->values, n) / fmax(square(b->values, NULL, n), 1e-30));
}

/* The largest of a's tensors' distances from b's. A tensor alone may differ more than the whole: the gradient of the
 * predictor's last bias nearly cancels without a stop-gradient, and is up to 4e-5 off with `ref` kernels, 6e-5 with
 * others. */
static double tensors_apart(const char *name, const char *split, const char *what, const replica_arena *a,
                            const replica_arena *b, double most) {
    const double size = (double)arena_size(b), mean = size > 0 ? square(b->values, NULL, arena_size(b)) / size : 0;
    double largest = 0;
    const double whole = replica_distance(a, b);
    cr_assert_eq(a->count, b->count);
    cr_expect_lt(whole, most, "%s, %s: %s differ by %.2g", name, split, what, whole);
    for (size_t i = 0; i < b->count; i++) {
        const od_param *p = &b->rows[i];
        const double own = square(b->values + p->offset, NULL, p->count), least = 1e-4 * mean * (double)p->count;
        const double apart =
            sqrt(square(a->values + p->offset, b->values + p->offset, p->count) / fmax(fmax(own, least), 1e-30));
        cr_expect_lt(apart, 10 * most, "%s, %s: %s of %s differ by %.2g", name, split, what, p->name, apart);
        largest = fmax(largest, apart);
    }
    return largest;
}

double replica_compare(const char *name, const char *split, const replica_outcome *a, const replica_outcome *b,
                       double most) {
    const double loss = fabs(a->loss - b->loss) / fmax(fabs(b->loss), 0.1);
    const double apart[] = {loss, tensors_apart(name, split, "gradients", &a->grad, &b->grad, most),
                            tensors_apart(name, split, "values", &a->value, &b->value, most),
                            tensors_apart(name, split, "statistics", &a->stats, &b->stats, most),
                            tensors_apart(name, split, "the target's statistics", &a->target, &b->target, most)};
    double largest = 0;
    cr_expect_lt(loss, most, "%s, %s: loss differs by %.2g", name, split, loss);
    cr_expect(isfinite(b->loss) && square(b->grad.values, NULL, arena_size(&b->grad)) > 1e-12,
              "%s: there is something to compare", name);
    for (size_t i = 0; i < OD_COUNT(apart); i++)
        largest = fmax(largest, apart[i]);
    return largest;
}
