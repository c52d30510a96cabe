#include "train/layout.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/shares.h"

od_status od_layout_create(od_layout *l, od_member *member, const od_device_info *device) {
    *l = (od_layout){.count = member ? od_member_count(member) : 1, .index = member ? od_member_index(member) : 0};
    l->places = calloc((size_t)l->count, sizeof *l->places);
    l->weights = calloc((size_t)l->count, sizeof *l->weights);
    l->shares = calloc((size_t)l->count, sizeof *l->shares);
    l->caps = calloc((size_t)l->count, sizeof *l->caps);
    if (!l->places || !l->weights || !l->shares || !l->caps) {
        od_layout_destroy(l);
        return od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
    }
    od_place *own = &l->places[l->index];
    (void)snprintf(own->id, sizeof own->id, "%s", device->id);
    (void)snprintf(own->name, sizeof own->name, "%s", device->name);
    own->rank = od_world_rank();
    for (int i = 0; i < l->count; i++) {
        l->weights[i] = 1;
        l->caps[i] = INT_MAX;
    }
    const od_place mine = *own;
    return member ? od_member_exchange(member, l->places, &mine, sizeof mine) : OD_OK;
}

void od_layout_destroy(od_layout *l) {
    free(l->places);
    free(l->weights);
    free(l->shares);
    free(l->caps);
    *l = (od_layout){0};
}

void od_layout_keep(od_layout *l, const bool *stays) {
    int kept = 0, index = l->index;
    for (int i = 0; i < l->count; i++) {
        if (i == l->index)
            index = kept;
        if (!stays[i])
            continue;
        l->places[kept] = l->places[i];
        l->weights[kept] = l->weights[i];
        l->shares[kept] = l->shares[i];
        l->caps[kept++] = l->caps[i];
    }
    l->count = kept;
    l->index = index;
}

od_status od_layout_exchange(const od_layout *l, od_member *member, double own, double *values) {
    memset(values, 0, (size_t)l->count * sizeof *values);
    values[l->index] = own;
    return member ? od_member_sum(member, values, (size_t)l->count) : OD_OK;
}

od_status od_layout_range(const od_layout *l, int total, int *first, int *n) {
    *first = 0;
    *n = total;
    if (l->count == 1)
        return OD_OK;
    if (total < l->count) { /* one each, as far as they go */
        *first = l->index < total ? l->index : total;
        *n = l->index < total;
        return OD_OK;
    }
    int *ranges = malloc((size_t)l->count * sizeof *ranges);
    double *weights = malloc((size_t)l->count * sizeof *weights);
    od_status status = OD_OK;
    for (int i = 0; i < l->count && weights; i++)
        weights[i] = l->shares[i];
    if (ranges && weights && od_shares_divide(ranges, total, weights, NULL, l->count)) {
        *first = od_shares_first(ranges, l->index);
        *n = ranges[l->index];
    } else {
        status = od_fail(OD_ERR_MEMORY, "no memory for a division over %d devices", l->count);
    }
    free(ranges);
    free(weights);
    return status;
}

const char *od_layout_name(const od_layout *l, int i) {
    static _Thread_local char text[sizeof(od_place) + 32];
    const od_place *p = &l->places[i];
    int ranks = 0;
    for (int j = 0; j < l->count; j++)
        ranks |= l->places[j].rank;
    if (ranks)
        (void)snprintf(text, sizeof text, "%s of rank %d (%s)", p->id, p->rank, p->name);
    else
        (void)snprintf(text, sizeof text, "%s (%s)", p->id, p->name);
    return text;
}
