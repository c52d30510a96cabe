#include "train/snapshot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The arenas there are, without their values. */
static void list(od_snapshot *s, const od_model *model, const od_classifier *c) {
    const od_model_arenas a = od_model_get_arenas(model);
    const size_t params = od_model_params(model)->count, stats = od_model_stats(model)->count;
    const struct {
        od_span span;
        size_t size;
    } all[OD_SNAPSHOT_ARENAS] = {{a.value, params},
                                 {a.momentum, params},
                                 {a.second, params},
                                 {a.stats, stats},
                                 {a.target_value, od_model_head_offset(model)},
                                 {a.target_stats, stats},
                                 {c ? c->param : OD_NO_SPAN, c ? c->table.count : 0},
                                 {c ? c->momentum : OD_NO_SPAN, c ? c->table.count : 0}};
    s->count = 0;
    for (int i = 0; i < OD_SNAPSHOT_ARENAS; i++)
        if (all[i].span.buffer) {
            s->spans[s->count] = all[i].span;
            s->sizes[s->count++] = all[i].size;
        }
}

od_status od_snapshot_take(od_snapshot *s, const od_model *model, const od_classifier *online) {
    od_status status = OD_OK;
    *s = (od_snapshot){0};
    list(s, model, online);
    for (int i = 0; i < s->count && !status; i++) {
        s->values[i] = malloc((s->sizes[i] ? s->sizes[i] : 1) * sizeof(float));
        status = s->values[i] ? od_span_read(s->spans[i], s->values[i], s->sizes[i])
                              : od_fail(OD_ERR_MEMORY, "no host memory for %zu values of the model", s->sizes[i]);
    }
    return status;
}

od_status od_snapshot_put(const od_snapshot *s, od_model *model, const od_classifier *online) {
    od_snapshot to = {0};
    od_status status = OD_OK;
    list(&to, model, online);
    for (int i = 0; i < to.count && !status; i++)
        status = od_span_write(to.spans[i], s->values[i], s->sizes[i]);
    return status ? status : od_model_update(model);
}

od_status od_snapshot_gather(od_snapshot *s, const od_model *model, const od_classifier *online, od_member *member,
                             int from) {
    const bool gives = od_member_index(member) == from, takes = od_member_leads(member);
    const float *all = NULL;
    od_status status = OD_OK;
    *s = (od_snapshot){0};
    if (gives && (status = od_snapshot_take(s, model, online)))
        return status;
    list(s, model, online);
    for (int i = 0; i < s->count && !status; i++) {
        const size_t n = s->sizes[i];
        status = od_member_gather(member, &all, s->values[i], 0, gives ? n : 0, n);
        if (status || !takes || gives)
            continue;
        s->values[i] = malloc((n ? n : 1) * sizeof(float));
        if (s->values[i])
            memcpy(s->values[i], all, n * sizeof(float));
        else
            status = od_fail(OD_ERR_MEMORY, "no host memory for %zu values of the model", n);
    }
    return status;
}

const float *od_snapshot_find(const od_snapshot *s, od_span span) {
    for (int i = 0; i < s->count; i++)
        if (s->spans[i].buffer == span.buffer && s->spans[i].offset == span.offset)
            return s->values[i];
    return NULL;
}

bool od_snapshot_finite(const od_snapshot *s) {
    for (int i = 0; i < s->count; i++)
        for (size_t j = 0; j < s->sizes[i]; j++)
            if (!isfinite(s->values[i][j]))
                return false;
    return true;
}

void od_snapshot_free(od_snapshot *s) {
    for (int i = 0; i < s->count; i++)
        free(s->values[i]);
    *s = (od_snapshot){0};
}
