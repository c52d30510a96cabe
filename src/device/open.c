#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "device/internal.h"
#include "device/plan.h"

/* How many commands may wait unsent: a screen's watchdog counts the time of what is sent at once. */
enum { FLUSH_EVERY = 8 };

const char *const od_family_names[] = {"auto", "ref", "cpu", "gpu", NULL};

bool od_family_parse(const char *text, od_family *out) {
    for (od_family f = OD_FAMILY_AUTO; f <= OD_FAMILY_GPU; f++)
        if (strcmp(text, od_family_name(f)) == 0) {
            *out = f;
            return true;
        }
    return false;
}

const char *od_family_name(od_family family) {
    return od_family_names[family];
}

/* The driver's own words about an error, where it gives them. */
static void CL_CALLBACK note_from_driver(const char *words, const void *data, size_t bytes, void *user) {
    (void)data;
    (void)bytes;
    (void)user;
    od_log_topic("driver", "%s", words);
}

static od_status open_queue(od_device *device) {
    cl_int error;
    const od_device_info *info = &device->info;
    const cl_context_properties properties[] = {CL_CONTEXT_PLATFORM, (cl_context_properties)device->platform, 0};
    device->context = clCreateContext(properties, 1, &device->id, note_from_driver, NULL, &error);
    if (error)
        return od_cl_fail(error, "clCreateContext", info, "%s", info->platform);
    device->queue =
        clCreateCommandQueue(device->context, device->id, device->profiling ? CL_QUEUE_PROFILING_ENABLE : 0, &error);
    if (error)
        return od_cl_fail(error, "clCreateCommandQueue", info, "%s", device->profiling ? "with profiling" : "");
    return OD_OK;
}

od_family od_family_of(od_family asked, od_device_type type) {
    if (asked != OD_FAMILY_AUTO)
        return asked;
    return type == OD_DEVICE_CPU ? OD_FAMILY_CPU : OD_FAMILY_GPU;
}

static void open_budget(od_device *device, const od_device_options *options) {
    od_pool *pool = &device->pool;
    pool->budget = options->memory_bytes ? options->memory_bytes : device->info.memory_bytes / 5 * 4;
    pool->processes = od_memory_is_host(&device->info) && options->processes > 1 ? options->processes : 1;
    pool->memory = options->memory_bytes ? NULL : od_memory_enter(&device->info);
}

od_status od_device_open(const char *spec, const od_device_options *options, od_device **out) {
    static atomic_uint opened; /* by this process */
    const od_device_options defaults = {0};
    od_device_info *infos = NULL;
    size_t count = 0, index = 0;
    const char *reason = "";
    od_device *device = NULL;
    od_status status;
    *out = NULL;
    if (!options)
        options = &defaults;
    if ((status = od_device_list(&infos, &count)) || (status = od_device_select(infos, count, spec, &index, &reason)))
        goto out;
    device = calloc(1, sizeof *device);
    if (!device) {
        status = od_fail(OD_ERR_MEMORY, "no memory for device %s", infos[index].id);
        goto out;
    }
    device->info = infos[index];
    device->family = od_family_of(options->family, device->info.type);
    device->profiling = options->profile;
    device->quirks = od_quirks_of(&device->info, device->info.note, sizeof device->info.note);
    device->caching =
        od_cache_keeps() && (options->cache == OD_CACHE_ALWAYS ||
                             (options->cache == OD_CACHE_AUTO && !(device->quirks.flags & OD_QUIRK_NO_BINARIES)));
    open_budget(device, options);
    if ((status = od_cl_find(device->info.platform_index, device->info.device_index, &device->platform, &device->id)) ||
        (status = open_queue(device)) || (status = od_faults_open(&device->faults, atomic_fetch_add(&opened, 1))))
        goto out;
    device->tuning = od_tuning_open(&device->info);
    od_log(OD_LOG_INFO, "device %s %s (%s), %s", device->info.id, device->info.name, device->info.platform, reason);
    *out = device;
    device = NULL;
out:
    od_device_close(device);
    free(infos);
    return status;
}

void od_device_close(od_device *device) {
    if (!device)
        return;
    if (device->queue)
        (void)od_device_finish(device);
    if (device->pool.live_count)
        od_log(OD_LOG_WARN, "device %s closed with %zu buffers in use", device->info.id, device->pool.live_count);
    od_device_profile_reset(device);
    od_kernels_release(device);
    od_programs_release(device);
    od_pool_empty(device);
    if (device->queue)
        (void)clReleaseCommandQueue(device->queue);
    if (device->context)
        (void)clReleaseContext(device->context);
    od_faults_close(&device->faults);
    od_tuning_close(device->tuning);
    od_memory_leave(device->pool.memory);
    free(device->transfers);
    free(device);
}

const od_device_info *od_device_get_info(const od_device *device) {
    return &device->info;
}

od_family od_device_family(const od_device *device) {
    return device->family;
}

bool od_device_small_tiles(const od_device *device) {
    return device->quirks.flags & OD_QUIRK_SMALL_TILES;
}

uint64_t od_device_loop_limit(const od_device *device) {
    /* Short of 65,535: callers count the loops that matter, not each one. */
    return device->quirks.flags & OD_QUIRK_LOOP_LIMIT ? 60000 : 0;
}

od_status od_device_flush(od_device *device) {
    device->unflushed = 0;
    if (od_device_is_plan(device))
        return OD_OK;
    cl_int error = od_fault(device, OD_FAULT_KINDS);
    if (!error)
        error = clFlush(device->queue);
    return error ? od_cl_fail(error, "clFlush", &device->info, "%s", "") : OD_OK;
}

od_status od_device_finish(od_device *device) {
    device->unflushed = 0;
    if (od_device_is_plan(device))
        return OD_OK;
    const cl_int fault = od_fault(device, OD_FAULT_KINDS), error = clFinish(device->queue);
    return od_transfers_end(device, fault ? fault : error, "clFinish", 0);
}

void od_device_enqueued(od_device *device) {
    if (++device->unflushed >= FLUSH_EVERY)
        (void)od_device_flush(device); /* an error comes back with the next command */
}
