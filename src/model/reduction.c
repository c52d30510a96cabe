#include "model/reduction.h"

enum { PIECE = 1 << 20 }; /* floats, at least; small pieces cost a round of all members each */

od_status od_reduction_create(od_reduction *r, od_device *device, od_member *member, size_t count) {
    *r = (od_reduction){.member = member, .count = count, .started = count, .given = count};
    od_status status = od_pinned_create(device, count * sizeof(float), &r->host);
    if (status)
        return od_fail_in(status, "host memory for %zu gradients: ", count);
    r->values = od_pinned_memory(r->host);
    return OD_OK;
}

void od_reduction_destroy(od_reduction *r) {
    od_mark_release(r->mark);
    od_pinned_release(r->host);
    *r = (od_reduction){0};
}

void od_reduction_begin(od_reduction *r, bool final) {
    od_mark_release(r->mark);
    r->mark = NULL;
    r->final = final;
    r->started = r->given = r->count;
}

/* What is on its way to the host, to the team once it is there. */
static od_status hand_over(od_reduction *r) {
    od_status status = OD_OK;
    if (r->started == r->given)
        return OD_OK;
    if ((status = od_mark_wait(r->mark)) ||
        (status = od_member_reduce(r->member, r->values, r->started, r->given - r->started)))
        return status;
    od_mark_release(r->mark);
    r->mark = NULL;
    r->given = r->started;
    return OD_OK;
}

static od_status start(od_reduction *r, od_device *device, od_span grad, size_t from) {
    od_status status = hand_over(r);
    if (status || (status = od_span_read_start(od_span_at(grad, from), r->values + from, r->started - from)) ||
        (status = od_device_mark(device, &r->mark)))
        return status;
    r->started = from;
    return OD_OK;
}

od_status od_reduction_advance(od_reduction *r, od_device *device, od_span grad, size_t from) {
    return r && r->final && r->started - from >= PIECE ? start(r, device, grad, from) : OD_OK;
}

od_status od_reduction_finish(od_reduction *r, od_device *device, od_span grad) {
    const float *sums = NULL;
    od_status status = r->started > 0 ? start(r, device, grad, 0) : OD_OK;
    if (status || (status = od_device_finish(device)) || (status = hand_over(r)) ||
        (status = od_member_reduced(r->member, &sums)))
        return status;
    return od_span_write_start(grad, sums, r->count);
}
