/* The optimiser's step: encoder and projector, then the head at its own rates; BYOL's target moves in the same pass. */
#include <stdlib.h>
#include <string.h>

#include "model/internal.h"
#include "offdiag/ops/optim.h"

const char *const od_optimizer_names[] = {"sgd", "lars", "adam", "adamw", NULL};

static bool is_adam(const od_model *m) {
    return m->config.optimizer == OD_ADAM || m->config.optimizer == OD_ADAMW;
}

/* A plan for the tensors from `first` up to `end` in the arena; NULL where there are none. V starts at zero, where a
 * ratio of norms means nothing: it takes plain steps. */
static od_status create_lars(od_model *m, size_t first, size_t end, od_lars **out) {
    od_lars_tensor *tensors = malloc(m->params.size * sizeof *tensors);
    size_t count = 0;
    if (!tensors)
        return od_fail(OD_ERR_MEMORY, "no memory for LARS over %zu tensors", m->params.size);
    for (size_t i = 0; i < m->params.size; i++) {
        const od_param *p = &m->params.rows[i];
        bool matrix = p->kind != OD_PARAM_VECTOR;
        if (p->offset < first || p->offset >= end)
            continue;
        tensors[count++] = (od_lars_tensor){.offset = p->offset - first,
                                            .count = p->count,
                                            .adapt = matrix && strcmp(p->name, "predictor.V") != 0,
                                            .decay = matrix};
    }
    od_status status = count ? od_lars_create(m->device, tensors, count, out) : OD_OK;
    free(tensors);
    return status;
}

od_status od_optimizer_create(od_model *m) {
    size_t head = m->head_offset, end = m->params.count;
    od_status status = OD_OK;
    if (is_adam(m)) {
        if ((status = od_span_create(m->device, end, &m->arenas.second)))
            return status;
        return od_span_zero(m->arenas.second, end);
    }
    if (m->config.optimizer != OD_LARS)
        return OD_OK;
    status = create_lars(m, 0, head, &m->lars[0]);
    return status ? status : create_lars(m, head, end, &m->lars[1]);
}

void od_optimizer_destroy(od_model *m) {
    od_lars_destroy(m->lars[0]);
    od_lars_destroy(m->lars[1]);
}

static od_status step(od_model *m, const od_optim_range *range, od_lars *lars, float lr, float weight_decay,
                      const od_optim_rates *r) {
    od_adam_rates adam = {.lr = lr,
                          .beta1 = r->momentum,
                          .beta2 = r->beta2,
                          .eps = 1e-8f,
                          .weight_decay = weight_decay,
                          .decoupled = m->config.optimizer == OD_ADAMW,
                          .step = r->step + 1};
    switch (m->config.optimizer) {
    case OD_SGD:
        return od_sgd_step(m->device, range, lr, r->momentum, weight_decay);
    case OD_LARS:
        return od_lars_step(lars, range, lr, r->momentum, weight_decay, r->lars_eta);
    case OD_ADAM:
    case OD_ADAMW:
        break;
    }
    return od_adam_step(m->device, range, &adam);
}

od_status od_model_optimize(od_model *m, const od_optim_rates *r) {
    const od_model_arenas *a = &m->arenas;
    size_t head = m->head_offset;
    od_optim_range range = {.param = a->value,
                            .momentum = a->momentum,
                            .grad = a->grad,
                            .second = a->second,
                            .target = a->target_value,
                            .count = head,
                            .tau = r->ema_tau};
    od_status status = step(m, &range, m->lars[0], r->lr, r->weight_decay, r);
    if (!status && m->params.count > head) {
        range = (od_optim_range){.param = od_span_at(a->value, head),
                                 .momentum = od_span_at(a->momentum, head),
                                 .grad = od_span_at(a->grad, head),
                                 .second = a->second.buffer ? od_span_at(a->second, head) : OD_NO_SPAN,
                                 .count = m->params.count - head};
        status = step(m, &range, m->lars[1], r->head_lr, r->head_weight_decay, r);
    }
    if (!status)
        status = od_head_follow(&m->head, &m->online.net, &m->config, r->step);
    return status ? status : od_model_update(m);
}
