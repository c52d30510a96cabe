/* Host memory from the driver: what it allocates itself it can transfer from and to directly. */
#include <stdlib.h>

#include "base/log.h"
#include "device/internal.h"
#include "device/plan.h"

enum { PAGE = 4096 };

struct od_pinned {
    od_device *device;
    size_t bytes, counted; /* counted: in the device's memory */
    cl_mem mem;            /* NULL: plain memory */
    void *memory;
};

/* False: the driver gives none. */
static bool allocate_mapped(od_pinned *pinned) {
    const od_device *device = pinned->device;
    cl_int error;
    pinned->mem =
        clCreateBuffer(device->context, CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR, pinned->bytes, NULL, &error);
    if (!error)
        pinned->memory = clEnqueueMapBuffer(device->queue, pinned->mem, CL_TRUE, CL_MAP_READ | CL_MAP_WRITE, 0,
                                            pinned->bytes, 0, NULL, NULL, &error);
    if (!error)
        return true;
    od_log_topic("memory", "%zu bytes of pinned memory: %s; plain memory instead", pinned->bytes,
                 od_cl_error_name(error));
    if (pinned->mem)
        (void)clReleaseMemObject(pinned->mem);
    pinned->mem = NULL;
    pinned->memory = NULL;
    return false;
}

od_status od_pinned_create(od_device *device, size_t bytes, od_pinned **out) {
    od_status status = OD_OK;
    *out = NULL;
    if (bytes > SIZE_MAX - PAGE)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu bytes of pinned memory", bytes);
    od_pinned *pinned = calloc(1, sizeof *pinned);
    if (!pinned)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu bytes of pinned memory", bytes);
    pinned->device = device;
    pinned->bytes = bytes ? (bytes + PAGE - 1) / PAGE * PAGE : PAGE;
    if (device->info.unified_memory) {
        if ((status = od_pool_count(device, pinned->bytes)))
            goto out;
        pinned->counted = pinned->bytes;
    }
    if (od_device_is_plan(device) || !allocate_mapped(pinned))
        pinned->memory = aligned_alloc(PAGE, pinned->bytes);
    if (!pinned->memory)
        status = od_fail(OD_ERR_MEMORY, "no memory for %zu bytes of pinned memory", bytes);
out:
    if (status)
        od_pinned_release(pinned);
    else
        *out = pinned;
    return status;
}

void *od_pinned_memory(const od_pinned *pinned) {
    return pinned->memory;
}

void od_pinned_release(od_pinned *pinned) {
    if (!pinned)
        return;
    if (pinned->mem) {
        (void)clEnqueueUnmapMemObject(pinned->device->queue, pinned->mem, pinned->memory, 0, NULL, NULL);
        (void)clReleaseMemObject(pinned->mem); /* the driver keeps it until it is unmapped */
    } else
        free(pinned->memory);
    od_pool_uncount(pinned->device, pinned->counted);
    free(pinned);
}
