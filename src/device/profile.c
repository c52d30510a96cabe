/* Times per kernel, from the events of launches, for a device opened with profiling; the work of launches for any. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/internal.h"

void od_work_add(od_work *sum, od_work work) {
    sum->flop += work.flop;
    sum->bytes += work.bytes;
}

void od_work_count(od_device *device, od_work work) {
    od_work_add(&device->work.work, work);
    device->work.launches++;
    device->work.untold += work.bytes == 0;
}

od_work_done od_device_work(const od_device *device) {
    return device->work;
}

static void release_events(od_device *device) {
    for (size_t i = 0; i < device->pending_count; i++)
        (void)clReleaseEvent(device->pending[i].event);
    device->pending_count = 0;
}

static bool event_time(cl_event event, cl_profiling_info what, cl_ulong *time) {
    return clGetEventProfilingInfo(event, what, sizeof *time, time, NULL) == CL_SUCCESS;
}

od_status od_profile_collect(od_device *device) {
    od_status status = device->pending_count ? od_device_finish(device) : OD_OK;
    for (size_t i = 0; !status && i < device->pending_count; i++) {
        cl_ulong begin, end;
        od_kernel *kernel = device->pending[i].kernel;
        if (event_time(device->pending[i].event, CL_PROFILING_COMMAND_START, &begin) &&
            event_time(device->pending[i].event, CL_PROFILING_COMMAND_END, &end) && end >= begin) {
            kernel->launches++;
            kernel->nanoseconds += end - begin;
            od_work_add(&kernel->work, device->pending[i].work);
        }
    }
    release_events(device); /* a table of unreleased events slows some drivers down */
    return status;
}

void od_profile_add(od_device *device, od_kernel *kernel, od_work work, cl_event event) {
    if (device->pending_count == OD_PROFILE_PENDING)
        (void)od_profile_collect(device); /* an error comes back with the next command */
    device->pending[device->pending_count++] = (od_pending){event, kernel, work};
}

static int by_time(const void *a, const void *b) {
    const od_profile_row *x = a, *y = b;
    if (x->seconds != y->seconds)
        return x->seconds < y->seconds ? 1 : -1;
    return strcmp(x->kernel, y->kernel);
}

od_status od_device_profile(od_device *device, od_profile_row **rows, size_t *count) {
    size_t n = 0;
    *rows = NULL;
    *count = 0;
    od_status status = od_profile_collect(device);
    if (status)
        return status;
    for (int slot = 0; slot < OD_KERNEL_SLOTS; slot++)
        for (const od_kernel *k = device->kernels[slot]; k; k = k->next)
            n += k->launches > 0;
    od_profile_row *list = calloc(n + 1, sizeof *list);
    if (!list)
        return od_fail(OD_ERR_MEMORY, "no memory for a profile of %zu kernels", n);
    n = 0;
    for (int slot = 0; slot < OD_KERNEL_SLOTS; slot++)
        for (const od_kernel *k = device->kernels[slot]; k; k = k->next) {
            if (k->launches == 0)
                continue;
            (void)snprintf(list[n].kernel, sizeof list[n].kernel, "%s:%s%s%s", k->program, k->name,
                           k->options[0] ? " " : "", k->options);
            list[n].launches = k->launches;
            list[n].seconds = (double)k->nanoseconds * 1e-9;
            list[n++].work = k->work;
        }
    qsort(list, n, sizeof *list, by_time);
    *rows = list;
    *count = n;
    return OD_OK;
}

void od_device_profile_reset(od_device *device) {
    release_events(device);
    for (int slot = 0; slot < OD_KERNEL_SLOTS; slot++)
        for (od_kernel *k = device->kernels[slot]; k; k = k->next) {
            k->launches = k->nanoseconds = 0;
            k->work = (od_work){0};
        }
    device->work = (od_work_done){0};
}
