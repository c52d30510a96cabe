/* Between host memory and buffers, and between buffers. All of it passes through the one in-order queue, so that what
 * was started in the background is over once any later call has waited. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/grow.h"
#include "device/internal.h"
#include "device/plan.h"

/* A transfer list this long is looked through for those that are over. */
enum { MANY_TRANSFERS = 64 };

static od_status check_part(const char *what, const od_buffer *buffer, size_t offset, size_t bytes) {
    if (!buffer)
        return od_fail(OD_ERR_ARGUMENT, "%s: no buffer", what);
    if (offset > buffer->bytes || bytes > buffer->bytes - offset)
        return od_fail(OD_ERR_ARGUMENT, "%s: bytes %zu to %zu + %zu are not in a buffer of %zu", what, offset, offset,
                       bytes, buffer->bytes);
    return OD_OK;
}

static od_status ended(od_device *device, cl_int error, const char *call, size_t bytes) {
    if (error)
        return od_cl_fail(error, call, &device->info, "%zu bytes", bytes);
    od_device_enqueued(device);
    return OD_OK;
}

/* With an event in the background, without one until it is over. */
static cl_int enqueue_write(const od_buffer *b, size_t offset, const void *data, size_t bytes, cl_event *event) {
    const cl_int fault = od_fault(b->device, OD_FAULT_KINDS);
    return fault ? fault : clEnqueueWriteBuffer(b->device->queue, b->mem, !event, offset, bytes, data, 0, NULL, event);
}

static cl_int enqueue_read(const od_buffer *b, size_t offset, void *data, size_t bytes, cl_event *event) {
    return clEnqueueReadBuffer(b->device->queue, b->mem, !event, offset, bytes, data, 0, NULL, event);
}

/* ---- in the background ------------------------------------------------------------------------------------------- */

/* CL_COMPLETE, more than that while it goes on, or the error with which it ended. */
static cl_int state_of(const od_transfer *t) {
    if (!t->event)
        return t->error;
    cl_int state = CL_COMPLETE,
           error = clGetEventInfo(t->event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, NULL);
    return error ? error : state;
}

od_status od_transfers_end(od_device *device, cl_int error, const char *call, size_t bytes) {
    od_status status = OD_OK;
    if (error && device->transfer_count)
        (void)clFinish(device->queue); /* it may not have waited: the callers' memory is in use until then */
    for (size_t i = 0; i < device->transfer_count; i++) {
        const od_transfer *t = &device->transfers[i];
        const cl_int state = state_of(t);
        if (state < 0 && !status)
            status =
                od_cl_fail(state, t->call, &device->info, "%zu bytes at %zu, in the background", t->bytes, t->offset);
        if (t->event)
            (void)clReleaseEvent(t->event);
    }
    device->transfer_count = 0;
    if (!status && error && bytes)
        status = od_cl_fail(error, call, &device->info, "%zu bytes", bytes);
    else if (!status && error)
        status = od_cl_fail(error, call, &device->info, "%s", "");
    return status;
}

/* Forget those that are well over; one that failed stays until a call may tell it. */
static void forget_complete(od_device *device) {
    size_t kept = 0;
    for (size_t i = 0; i < device->transfer_count; i++) {
        const od_transfer t = device->transfers[i];
        if (state_of(&t) == CL_COMPLETE)
            (void)clReleaseEvent(t.event);
        else
            device->transfers[kept++] = t;
    }
    device->transfer_count = kept;
}

/* Room for one more in the list. */
static od_status prepare_start(od_device *device) {
    if (device->transfer_count >= MANY_TRANSFERS)
        forget_complete(device);
    od_transfer *longer = od_grow(device->transfers, device->transfer_count, &device->transfer_room, sizeof *longer);
    if (!longer)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu transfers", device->transfer_count + 1);
    device->transfers = longer;
    return OD_OK;
}

static od_status started(od_device *device, cl_int error, od_transfer transfer) {
    if (error)
        return od_cl_fail(error, transfer.call, &device->info, "%zu bytes at %zu", transfer.bytes, transfer.offset);
    device->transfers[device->transfer_count++] = transfer;
    od_device_enqueued(device);
    return OD_OK;
}

od_status od_buffer_write_start(od_buffer *buffer, size_t offset, const void *data, size_t bytes) {
    od_transfer t = {NULL, CL_SUCCESS, "clEnqueueWriteBuffer", offset, bytes};
    od_status status = check_part("write", buffer, offset, bytes);
    if (status || bytes == 0 || od_device_is_plan(buffer->device) || (status = prepare_start(buffer->device)))
        return status;
    return started(buffer->device, enqueue_write(buffer, offset, data, bytes, &t.event), t);
}

od_status od_buffer_read_start(const od_buffer *buffer, size_t offset, void *data, size_t bytes) {
    od_transfer t = {NULL, CL_SUCCESS, "clEnqueueReadBuffer", offset, bytes};
    od_status status = check_part("read", buffer, offset, bytes);
    if (status || bytes == 0)
        return status;
    if (od_device_is_plan(buffer->device)) {
        memset(data, 0, bytes);
        return OD_OK;
    }
    if ((status = prepare_start(buffer->device)))
        return status;
    const bool lost = buffer->device->faults.lost;
    const cl_int fault = od_fault(buffer->device, OD_FAULT_READ);
    if (fault && !lost) { /* it comes to light later */
        t.error = fault;
        return started(buffer->device, CL_SUCCESS, t);
    }
    return started(buffer->device, fault ? fault : enqueue_read(buffer, offset, data, bytes, &t.event), t);
}

struct od_mark {
    od_device_info info; /* of its own: another thread may wait */
    cl_event event;      /* NULL: nothing to wait for */
};

od_status od_device_mark(od_device *device, od_mark **out) {
    od_mark *mark = calloc(1, sizeof *mark);
    *out = NULL;
    if (!mark)
        return od_fail(OD_ERR_MEMORY, "no memory for a mark");
    mark->info = device->info;
    cl_int error =
        od_device_is_plan(device) ? CL_SUCCESS : clEnqueueMarkerWithWaitList(device->queue, 0, NULL, &mark->event);
    od_status status =
        error ? od_cl_fail(error, "clEnqueueMarkerWithWaitList", &device->info, "%s", "") : od_device_flush(device);
    if (status)
        od_mark_release(mark);
    else
        *out = mark;
    return status;
}

od_status od_mark_wait(const od_mark *mark) {
    cl_int error = mark->event ? clWaitForEvents(1, &mark->event) : CL_SUCCESS;
    return error ? od_cl_fail(error, "clWaitForEvents", &mark->info, "%s", "") : OD_OK;
}

void od_mark_release(od_mark *mark) {
    if (mark && mark->event)
        (void)clReleaseEvent(mark->event);
    free(mark);
}

/* ---- that wait, or stay on the device ---------------------------------------------------------------------------- */

od_status od_buffer_write(od_buffer *buffer, size_t offset, const void *data, size_t bytes) {
    od_status status = check_part("write", buffer, offset, bytes);
    if (status || bytes == 0 || od_device_is_plan(buffer->device))
        return status;
    const cl_int error = enqueue_write(buffer, offset, data, bytes, NULL);
    return ended(buffer->device, error, "clEnqueueWriteBuffer", bytes);
}

od_status od_buffer_read(const od_buffer *buffer, size_t offset, void *data, size_t bytes) {
    od_status status = check_part("read", buffer, offset, bytes);
    if (status || bytes == 0)
        return status;
    if (od_device_is_plan(buffer->device)) {
        memset(data, 0, bytes);
        return OD_OK;
    }
    cl_int error = od_fault(buffer->device, OD_FAULT_READ);
    if (!error)
        error = enqueue_read(buffer, offset, data, bytes, NULL);
    return od_transfers_end(buffer->device, error, "clEnqueueReadBuffer", bytes);
}

od_status od_buffer_copy(od_buffer *to, size_t to_offset, const od_buffer *from, size_t from_offset, size_t bytes) {
    od_status status = check_part("copy to", to, to_offset, bytes);
    if (!status)
        status = check_part("copy from", from, from_offset, bytes);
    if (status || bytes == 0)
        return status;
    if (to->device != from->device)
        return od_fail(OD_ERR_ARGUMENT, "copy: the buffers belong to different devices");
    if (to == from && to_offset < from_offset + bytes && from_offset < to_offset + bytes)
        return od_fail(OD_ERR_ARGUMENT, "copy: %zu bytes from %zu and to %zu of one buffer overlap", bytes, from_offset,
                       to_offset);
    if (od_device_is_plan(to->device))
        return OD_OK;
    cl_int error = od_fault(to->device, OD_FAULT_KINDS);
    if (!error)
        error =
            clEnqueueCopyBuffer(to->device->queue, from->mem, to->mem, from_offset, to_offset, bytes, 0, NULL, NULL);
    return ended(to->device, error, "clEnqueueCopyBuffer", bytes);
}

od_status od_buffer_fill(od_buffer *buffer, size_t offset, size_t bytes, uint32_t pattern) {
    od_status status = check_part("fill", buffer, offset, bytes);
    if (status || bytes == 0)
        return status;
    if (offset % 4 || bytes % 4)
        return od_fail(OD_ERR_ARGUMENT, "fill: offset %zu and size %zu must be multiples of 4", offset, bytes);
    if (od_device_is_plan(buffer->device))
        return OD_OK;
    cl_int error = od_fault(buffer->device, OD_FAULT_KINDS);
    if (!error)
        error = clEnqueueFillBuffer(buffer->device->queue, buffer->mem, &pattern, 4, offset, bytes, 0, NULL, NULL);
    return ended(buffer->device, error, "clEnqueueFillBuffer", bytes);
}

/* ---- spans ------------------------------------------------------------------------------------------------------- */

static od_status span_bytes(od_span s, size_t elements, size_t *offset, size_t *bytes) {
    if (__builtin_mul_overflow(s.offset, sizeof(float), offset) ||
        __builtin_mul_overflow(elements, sizeof(float), bytes))
        return od_fail(OD_ERR_ARGUMENT, "%zu elements at %zu: too many", elements, s.offset);
    return OD_OK;
}

od_status od_span_write(od_span to, const float *data, size_t elements) {
    size_t offset = 0, bytes = 0;
    od_status status = span_bytes(to, elements, &offset, &bytes);
    return status ? status : od_buffer_write(to.buffer, offset, data, bytes);
}

od_status od_span_read(od_span from, float *data, size_t elements) {
    size_t offset = 0, bytes = 0;
    od_status status = span_bytes(from, elements, &offset, &bytes);
    return status ? status : od_buffer_read(from.buffer, offset, data, bytes);
}

od_status od_span_write_start(od_span to, const float *data, size_t elements) {
    size_t offset = 0, bytes = 0;
    od_status status = span_bytes(to, elements, &offset, &bytes);
    return status ? status : od_buffer_write_start(to.buffer, offset, data, bytes);
}

od_status od_span_read_start(od_span from, float *data, size_t elements) {
    size_t offset = 0, bytes = 0;
    od_status status = span_bytes(from, elements, &offset, &bytes);
    return status ? status : od_buffer_read_start(from.buffer, offset, data, bytes);
}

od_status od_span_zero(od_span s, size_t elements) {
    size_t offset = 0, bytes = 0;
    od_status status = span_bytes(s, elements, &offset, &bytes);
    return status ? status : od_buffer_fill(s.buffer, offset, bytes, 0);
}

od_status od_span_copy(od_span to, od_span from, size_t elements) {
    size_t to_offset = 0, from_offset = 0, bytes = 0;
    od_status status = span_bytes(to, elements, &to_offset, &bytes);
    if (!status)
        status = span_bytes(from, elements, &from_offset, &bytes);
    return status ? status : od_buffer_copy(to.buffer, to_offset, from.buffer, from_offset, bytes);
}
