/* Making, initialising and updating a model; siamese.c has its training step. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rng.h"
#include "model/internal.h"
#include "model/params.h"
#include "offdiag/ops/head.h"
#include "offdiag/ops/norm.h"

static bool is_byol(const od_model *m) {
    return m->config.method == OD_BYOL;
}

/* ---- construction ----------------------------------------------------------------------------------------------- */

static od_status create_branch(od_branch *branch, const od_model_config *c, od_param_table *params,
                               od_param_table *stats) {
    od_builder builder = {.net = &branch->net, .params = params, .stats = stats};
    od_status status = od_encoder_create(&branch->encoder, &builder, c);
    if (status)
        return status;
    return od_mlp_create(&branch->projector, &builder, "projector", c->proj_layers ? c->proj_layers : 2,
                         branch->encoder.c, c->proj_hidden, c->proj_dim, false, c->proj_bn);
}

static void destroy_branch(od_branch *branch) {
    od_encoder_destroy(&branch->encoder);
    od_mlp_destroy(&branch->projector);
}

od_status od_model_tables(const od_model_config *config, od_param_table *params, od_param_table *stats) {
    od_branch branch = {.net.groups = 2};
    od_head head = {.kind = config->head};
    od_builder builder = {.net = &branch.net, .params = params, .stats = stats};
    *params = *stats = (od_param_table){0};
    od_status status = create_branch(&branch, config, params, stats);
    if (!status)
        status = od_head_create(&head, &builder, config->head, config->proj_dim, config->head_hidden);
    destroy_branch(&branch);
    od_head_destroy(&head);
    if (status) {
        od_param_table_free(params);
        od_param_table_free(stats);
    }
    return status;
}

/* The target has the online branch's layout, so its tables are made a second time only to find the same offsets. */
static od_status create_target(od_model *m) {
    od_param_table params = {0}, stats = {0};
    m->target.net = (od_net){.device = m->device, .arena = &m->arena, .max_rows = 2 * m->max_n, .groups = 2};
    od_status status = create_branch(&m->target, &m->config, &params, &stats);
    od_param_table_free(&params);
    od_param_table_free(&stats);
    return status;
}

/* One memory for the activations of both branches: the target's are no longer needed when the online branch runs. */
static od_status create_activations(od_model *m) {
    size_t total = 0, target = 0;
    od_status status = od_encoder_plan(&m->online.encoder, &m->online.net, &total);
    if (!status && is_byol(m))
        status = od_encoder_plan(&m->target.encoder, &m->target.net, &target);
    if (!status)
        status = od_arena_create(&m->arena, m->device, target > total ? target : total);
    od_log_topic("memory", "activations of %d images: %.1f MiB", m->online.net.max_rows,
                 (double)(target > total ? target : total) * sizeof(float) / 0x1p20);
    return status ? od_fail_in(status, "activations for %d images: ", m->online.net.max_rows) : OD_OK;
}

static od_status create_arenas(od_model *m) {
    od_device *device = m->device;
    od_model_arenas *a = &m->arenas;
    od_status status = OD_OK;
    if ((status = od_span_create(device, m->params.count, &a->value)) ||
        (status = od_span_create(device, m->params.count, &a->grad)) ||
        (status = od_span_create(device, m->params.count, &a->momentum)) ||
        (status = od_span_create(device, m->stats.count, &a->stats)) ||
        (status = od_span_zero(a->value, m->params.count)) || (status = od_span_zero(a->grad, m->params.count)) ||
        (status = od_span_zero(a->momentum, m->params.count)))
        return status;
    m->online.net.value = a->value;
    m->online.net.grad = a->grad;
    m->online.net.stats = a->stats;
    if (!is_byol(m))
        return OD_OK;
    if ((status = od_span_create(device, m->head_offset, &a->target_value)) ||
        (status = od_span_create(device, m->stats.count, &a->target_stats)))
        return status;
    m->target.net.value = a->target_value;
    m->target.net.stats = a->target_stats;
    return OD_OK;
}

static od_status create_step_tensors(od_model *m) {
    size_t rows = 2 * (size_t)m->max_n, d = m->config.proj_dim, features = m->online.encoder.c;
    struct {
        od_span *span;
        size_t elements;
    } wanted[] = {{&m->dp, rows * d}, {&m->dz, rows * d}, {&m->dh, rows * features}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        od_status status = od_span_create(m->device, wanted[i].elements, wanted[i].span);
        if (status)
            return status;
    }
    return od_objective_create(&m->objective, m->device, &m->config, 2 * m->max_n);
}

/* ---- initial values --------------------------------------------------------------------------------------------- */

/* One tensor in its stored layout, so that a seed means the same weights whatever the padding. The tensor's place in
 * the table is its random stream. */
static void draw_tensor(const od_param *p, float *stored, uint64_t seed, uint32_t stream, od_init_kind init) {
    size_t count = od_param_stored_count(p);
    int taps = p->kernel_h * p->kernel_w;
    const char *suffix = strrchr(p->name, '.');
    if (p->kind == OD_PARAM_VECTOR) {
        float value = strcmp(suffix, ".weight") == 0 || strcmp(suffix, ".running_var") == 0 ? 1.0f : 0.0f;
        for (size_t i = 0; i < count; i++)
            stored[i] = value;
    } else if (strcmp(suffix, ".V") == 0 || strcmp(suffix, ".correlation") == 0) {
        memset(stored, 0, count * sizeof *stored); /* V: W = I at step 0 */
    } else if (strcmp(suffix, ".W") == 0) {
        for (size_t i = 0; i < count; i++)
            stored[i] = i % ((size_t)p->out + 1) == 0 ? 1.0f : 0.0f;
    } else if (p->kind == OD_PARAM_CONV && init == OD_INIT_HE_FAN_OUT) {
        od_rng_fill_normal(stored, count, sqrtf(2.0f / (float)(taps * p->out)), seed, stream);
    } else {
        float bound = 1.0f / sqrtf((float)(taps * p->in_stored));
        od_rng_fill_uniform(stored, count, -bound, bound, seed, stream);
    }
}

static od_status init_arena(const od_param_table *table, od_span arena, uint64_t seed, od_init_kind init) {
    od_status status = OD_OK;
    float *host = calloc(table->count, sizeof *host), *stored = malloc(table->count * sizeof *stored);
    if (!host || !stored) {
        status = od_fail(OD_ERR_MEMORY, "no host memory for %zu initial weights", table->count);
        goto out;
    }
    for (size_t i = 0; i < table->size; i++) {
        const od_param *p = &table->rows[i];
        draw_tensor(p, stored, seed, (uint32_t)i, init);
        od_param_from_stored(p, host + p->offset, stored);
    }
    status = od_span_write(arena, host, table->count);
out:
    free(host);
    free(stored);
    return status;
}

static od_status init_values(od_model *m) {
    od_init_kind init = od_encoder_init_kind(m->config.encoder);
    od_model_arenas *a = &m->arenas;
    od_status status = OD_OK;
    if ((status = init_arena(&m->params, a->value, m->config.seed, init)) ||
        (status = init_arena(&m->stats, a->stats, m->config.seed, init)))
        return status;
    if (is_byol(m) && ((status = od_span_copy(a->target_value, a->value, m->head_offset)) ||
                       (status = od_span_copy(a->target_stats, a->stats, m->stats.count))))
        return status;
    return od_model_update(m);
}

od_status od_model_create(od_device *device, const od_model_config *config, int max_n, od_model **out) {
    od_status status = OD_OK;
    if (config->target_gradient && config->method != OD_SIMSIAM)
        return od_fail(OD_ERR_ARGUMENT, "BYOL's target has no gradient: without stop-gradient is for SimSiam");
    if (max_n < 1 || config->proj_dim < 2 || config->proj_hidden < 1 || config->head_hidden < 1)
        return od_fail(OD_ERR_ARGUMENT, "a model for batch %d, projector %d-%d, head %d: too small", max_n,
                       config->proj_hidden, config->proj_dim, config->head_hidden);
    od_model *m = calloc(1, sizeof *m);
    if (!m)
        return od_fail(OD_ERR_MEMORY, "no memory for a model");
    m->device = device;
    m->config = *config;
    m->max_n = max_n;
    m->online.net = (od_net){.device = device, .arena = &m->arena, .max_rows = 2 * max_n, .trained = true, .groups = 2};
    od_builder builder = {.net = &m->online.net, .params = &m->params, .stats = &m->stats};
    if ((status = create_branch(&m->online, config, &m->params, &m->stats)))
        goto fail;
    m->projector_offset = m->online.projector.layer[0].w;
    m->head_offset = m->params.count;
    if ((status = od_head_create(&m->head, &builder, config->head, config->proj_dim, config->head_hidden)))
        goto fail;
    if (is_byol(m) && (status = create_target(m)))
        goto fail;
    if ((status = create_activations(m)) || (status = create_arenas(m)) || (status = od_optimizer_create(m)) ||
        (status = create_step_tensors(m)) || (status = init_values(m)))
        goto fail;
    *out = m;
    return OD_OK;
fail:
    od_model_destroy(m);
    return od_fail_in(status, "building %s (width %d) for batch %d: ", config->encoder, config->width, max_n);
}

void od_model_destroy(od_model *m) {
    if (!m)
        return;
    destroy_branch(&m->online);
    destroy_branch(&m->target);
    od_head_destroy(&m->head);
    od_reduction_destroy(&m->reduction);
    od_optimizer_destroy(m);
    od_objective_destroy(&m->objective);
    od_arena_destroy(&m->arena);
    od_span owned[] = {m->arenas.value,
                       m->arenas.grad,
                       m->arenas.momentum,
                       m->arenas.second,
                       m->arenas.stats,
                       m->arenas.target_value,
                       m->arenas.target_stats,
                       m->dp,
                       m->dz,
                       m->dh};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        od_buffer_release(owned[i].buffer);
    od_param_table_free(&m->params);
    od_param_table_free(&m->stats);
    free(m);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

const od_model_config *od_model_get_config(const od_model *m) {
    return &m->config;
}
int od_model_feature_dim(const od_model *m) {
    return m->online.encoder.c;
}
const od_param_table *od_model_params(const od_model *m) {
    return &m->params;
}
const od_param_table *od_model_stats(const od_model *m) {
    return &m->stats;
}
size_t od_model_head_offset(const od_model *m) {
    return m->head_offset;
}
od_model_arenas od_model_get_arenas(const od_model *m) {
    return m->arenas;
}
od_span od_model_projection(const od_model *m) {
    return m->z;
}
od_span od_model_step_features(const od_model *m) {
    return m->h;
}

od_status od_model_offdiag(od_model *m, float *norm, float *largest) {
    float both[2] = {0, 0};
    od_status status = OD_OK;
    const bool fixed = m->config.head == OD_HEAD_DIRECTPRED;
    if (fixed || m->config.head == OD_HEAD_OFFDIAG || m->config.head == OD_HEAD_LINEAR) {
        od_span v = fixed ? m->head.w : od_span_at(m->arenas.value, m->head.v);
        od_span out = OD_NO_SPAN;
        if ((status = od_span_create(m->device, 2, &out)))
            return status;
        if (!(status = od_offdiag_norm(m->device, out, v, m->config.proj_dim)))
            status = od_span_read(out, both, 2);
        od_buffer_release(out.buffer);
    }
    *norm = both[0];
    *largest = both[1];
    return status;
}

/* ---- updating --------------------------------------------------------------------------------------------------- */

od_status od_model_update(od_model *m) {
    od_status status = od_encoder_update(&m->online.encoder, &m->online.net);
    if (!status)
        status = od_head_update(&m->head, &m->online.net);
    if (!status && is_byol(m))
        status = od_encoder_update(&m->target.encoder, &m->target.net);
    return status;
}
