/* A model as one of several replicas, each on a device of its own. */
#include <stdlib.h>

#include "model/internal.h"

od_status od_model_join(od_model *m, od_member *member) {
    od_status status = od_reduction_create(&m->reduction, m->device, member, m->params.count);
    if (status)
        return status;
    m->online.net.member = m->target.net.member = m->objective.member = member;
    m->online.net.reduction = &m->reduction;
    return OD_OK;
}

void od_model_set_final(od_model *m, bool final) {
    if (m->online.net.member)
        od_reduction_begin(&m->reduction, final);
}

od_status od_model_reduce(od_model *m) {
    return m->online.net.member ? od_reduction_finish(&m->reduction, m->device, m->online.net.grad) : OD_OK;
}

static od_status share(od_model *m, od_span span, size_t count, float *host) {
    od_member *member = m->online.net.member;
    od_status status = OD_OK;
    if (!span.buffer || !count)
        return OD_OK;
    if ((od_member_leads(member) && (status = od_span_read(span, host, count))) ||
        (status = od_member_share(member, host, count * sizeof *host)))
        return status;
    return od_member_leads(member) ? OD_OK : od_span_write(span, host, count);
}

od_status od_model_sync(od_model *m) {
    const od_model_arenas *a = &m->arenas;
    const size_t params = m->params.count, stats = m->stats.count, most = params > stats ? params : stats;
    od_status status = OD_OK;
    if (!m->online.net.member)
        return OD_OK;
    float *host = malloc(most * sizeof *host);
    if (!host)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu parameters", most);
    if ((status = share(m, a->value, params, host)) || (status = share(m, a->momentum, params, host)) ||
        (status = share(m, a->second, params, host)) || (status = share(m, a->stats, stats, host)) ||
        (status = share(m, a->target_value, m->head_offset, host)) || (status = share(m, a->target_stats, stats, host)))
        goto out;
    status = od_model_update(m);
out:
    free(host);
    return status;
}
