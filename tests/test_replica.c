/* One model on several devices: replicas with parts of a batch agree with one model that has all of it. */
#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/team.h"
#include "harness.h"
#include "offdiag/model.h"

enum { N = 32, SIDE_MOST = 16, IMAGE_MOST = SIDE_MOST * SIDE_MOST * 4, MOST = 3, PARAMS_MOST = 1 << 16 };

static float images[2 * N * IMAGE_MOST];

typedef struct outcome {
    double loss;
    float *grad, *value, *stats, *target; /* of the last step */
} outcome;

typedef struct replica {
    pthread_t thread;
    od_device *device;
    od_member *member; /* NULL: alone */
    const od_model_config *config;
    int first, n, parts; /* its images of each view, in so many passes */
    int steps;
    od_status status;
    char message[400];
    outcome out;
} replica;

static size_t image_size(const od_model_config *c) {
    return (size_t)c->image_size * c->image_size * 4;
}

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
    if (r->member)
        od_member_begin(r->member);
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
    const od_model_arenas a = od_model_get_arenas(model);
    const size_t params = od_model_params(model)->count;
    if ((status = od_span_read(a.grad, r->out.grad, params)))
        return status;
    return od_model_optimize(model, &rates);
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
    for (uint64_t at = 0; at < (uint64_t)r->steps && !status; at++)
        status = step(r, model, loss, x, at);
    const od_model_arenas a = od_model_get_arenas(model);
    if (!status && !(status = od_span_read(a.value, r->out.value, od_model_params(model)->count)) &&
        !(status = od_span_read(a.stats, r->out.stats, od_model_stats(model)->count)) && a.target_stats.buffer)
        status = od_span_read(a.target_stats, r->out.target, od_model_stats(model)->count);
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

static void make_outcome(outcome *o) {
    float **kept[] = {&o->grad, &o->value, &o->stats, &o->target};
    for (size_t i = 0; i < OD_COUNT(kept); i++)
        cr_assert_not_null(*kept[i] = calloc(PARAMS_MOST, sizeof(float)));
}

static void free_outcome(outcome *o) {
    free(o->grad);
    free(o->value);
    free(o->stats);
    free(o->target);
}

/* Run on `members` devices with these shares; the outcome of member 0, with which all others' must agree: in their
 * bits where the devices are alike. */
static outcome run_team(od_device *const *devices, const od_model_config *config, const int *shares, int members,
                        int parts, int steps) {
    const od_family family = od_device_family(devices[0]);
    replica r[MOST];
    od_team *team = NULL;
    int first = 0;
    cr_assert_eq(od_team_create(&team, members), OD_OK);
    for (int i = 0; i < members; first += shares[i++]) {
        r[i] = (replica){.device = devices[i],
                         .member = od_team_member(team, i),
                         .config = config,
                         .first = first,
                         .n = shares[i],
                         .parts = parts,
                         .steps = steps};
        make_outcome(&r[i].out);
        cr_assert_eq(pthread_create(&r[i].thread, NULL, run_thread, &r[i]), 0);
    }
    for (int i = 0; i < members; i++)
        pthread_join(r[i].thread, NULL);
    for (int i = 0; i < members; i++) {
        cr_assert_eq(r[i].status, OD_OK, "%s", r[i].message);
        const bool alike = od_device_family(devices[i]) == family;
        cr_assert_arr_eq(r[i].out.grad, r[0].out.grad, PARAMS_MOST * sizeof(float), "gradients of member %d", i);
        cr_assert(!alike || memcmp(r[i].out.value, r[0].out.value, PARAMS_MOST * sizeof(float)) == 0,
                  "weights of member %d", i);
        cr_assert(!alike || memcmp(r[i].out.stats, r[0].out.stats, PARAMS_MOST * sizeof(float)) == 0,
                  "statistics of member %d", i);
        if (i > 0)
            free_outcome(&r[i].out);
    }
    od_team_destroy(team);
    return r[0].out;
}

static double distance(const float *a, const float *b) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < PARAMS_MOST; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return sqrt(difference / (size > 0 ? size : 1));
}

static void compare(const char *name, const char *split, const outcome *a, const outcome *b, double most) {
    const double loss = fabs(a->loss - b->loss) / fmax(fabs(b->loss), 0.1), grad = distance(a->grad, b->grad);
    const double value = distance(a->value, b->value), stats = distance(a->stats, b->stats);
    cr_expect_lt(loss, most, "%s, %s: loss differs by %.2g", name, split, loss);
    cr_expect_lt(grad, most, "%s, %s: gradients differ by %.2g", name, split, grad);
    cr_expect_lt(value, most, "%s, %s: weights differ by %.2g", name, split, value);
    cr_expect_lt(stats, most, "%s, %s: statistics differ by %.2g", name, split, stats);
    cr_expect_lt(distance(a->target, b->target), most, "%s, %s: the target's statistics differ", name, split);
    cr_expect(isfinite(b->loss) && distance(b->grad, a->stats) > 0.1, "%s: there is something to compare", name);
}

static const struct {
    const char *name;
    int shares[MOST], members, parts;
} splits[] = {{"1:1", {16, 16}, 2, 1},
              {"5:3", {20, 12}, 2, 1},
              {"31:1", {31, 1}, 2, 1},
              {"5:4:7", {10, 8, 14}, 3, 1},
              {"1:1 in two passes", {16, 16}, 2, 2}};

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
};

static void draw(void) {
    od_data_normal(images, 2 * N * IMAGE_MOST, 5, 0);
    for (int i = 3; i < 2 * N * IMAGE_MOST; i += 4)
        images[i] = 0;
}

/* Devices that round differently: with all three families of kernels. */
static void open_devices(od_device **devices, bool unlike) {
    static const od_family families[MOST] = {OD_FAMILY_AUTO, OD_FAMILY_GPU, OD_FAMILY_REF};
    for (int i = 0; i < MOST; i++) {
        const od_device_options options = {.family = unlike ? families[i] : OD_FAMILY_AUTO};
        cr_assert_eq(od_device_open(NULL, &options, &devices[i]), OD_OK, "%s", od_error_message());
    }
}

static od_model_config model_of(size_t method, const char *encoder, int side) {
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

/* Every `stride`-th method, each split. */
static void check(const char *encoder, int side, size_t stride, double most) {
    od_device *devices[MOST];
    draw();
    open_devices(devices, false);
    for (size_t m = 0; m < OD_COUNT(methods); m += stride) {
        const od_model_config c = model_of(m, encoder, side);
        replica alone[2];
        for (int i = 0; i < 2; i++) {
            alone[i] = (replica){.device = devices[0], .config = &c, .n = N, .parts = i + 1, .steps = 1};
            make_outcome(&alone[i].out);
            cr_assert_eq(run(&alone[i]), OD_OK, "%s", od_error_message());
        }
        for (size_t s = 0; s < OD_COUNT(splits); s++) {
            outcome out = run_team(devices, &c, splits[s].shares, splits[s].members, splits[s].parts, 1);
            compare(methods[m].name, splits[s].name, &out, &alone[splits[s].parts - 1].out, most);
            free_outcome(&out);
        }
        free_outcome(&alone[0].out);
        free_outcome(&alone[1].out);
    }
    for (int i = 0; i < MOST; i++)
        od_device_close(devices[i]);
}

Test(replica, parts_of_a_batch_are_the_batch) {
    check("cnn4", 8, 1, 1e-5);
}

Test(replica, residual_blocks_too) {
    check("resnet18", SIDE_MOST, 3, 1e-4); /* its gradients in float are 4e-5 off those in double precision */
}

/* Unlike devices differ in their last bits: together they must still be one model. */
Test(replica, unlike_devices_stay_together_for_fifty_steps) {
    od_test_needs_whole();
    od_device *devices[MOST];
    const od_model_config c = model_of(6, "cnn4", 8);
    draw();
    open_devices(devices, true);
    replica alone = {.device = devices[0], .config = &c, .n = N, .parts = 1, .steps = 50};
    make_outcome(&alone.out);
    cr_assert_eq(run(&alone), OD_OK, "%s", od_error_message());
    outcome out = run_team(devices + 1, &c, splits[1].shares, 2, 1, 50);
    cr_expect_lt(fabs(out.loss - alone.out.loss), 1e-3 * fabs(alone.out.loss), "loss %.6f, alone %.6f", out.loss,
                 alone.out.loss);
    cr_expect_lt(distance(out.value, alone.out.value), 1e-3, "weights differ by %.2g",
                 distance(out.value, alone.out.value));
    free_outcome(&out);
    free_outcome(&alone.out);
    for (int i = 0; i < MOST; i++)
        od_device_close(devices[i]);
}
