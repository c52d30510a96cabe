/* Buffers come from a pool: a freed one is kept by its capacity and handed out again. All work is on one in-order
 * queue, so a buffer may be reused while queued commands still use it: the new user's commands come after them. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "device/internal.h"
#include "device/plan.h"

enum { SMALLEST = 256, HUGE_PAGE = 2 << 20 };

/* Capacities are powers of two and seven steps between two of them: at most an eighth is wasted. */
static size_t class_capacity(size_t bytes) {
    if (bytes < SMALLEST)
        bytes = SMALLEST;
    size_t step = (size_t)1 << (63 - __builtin_clzll(bytes) - 3);
    return (bytes + step - 1) / step * step;
}

static unsigned class_of(size_t capacity) {
    unsigned power = 63 - (unsigned)__builtin_clzll(capacity);
    return power * 8 + (unsigned)(capacity >> (power - 3) & 7);
}

/* ---- the pool ---------------------------------------------------------------------------------------------------- */

static void destroy(od_buffer *buffer) {
    if (buffer->mem)
        (void)clReleaseMemObject(buffer->mem); /* the driver keeps it until queued commands are done with it */
    free(buffer);
}

uint64_t od_pool_budget(const od_pool *pool) {
    return pool->memory ? pool->budget / od_memory_users(pool->memory) / pool->processes : pool->budget;
}

static od_status refuse(const od_device *device, size_t bytes, const char *why) {
    const od_pool *pool = &device->pool;
    return od_fail(OD_ERR_DEVICE_MEMORY,
                   "%s: no memory for a buffer of %zu bytes (%.1f MiB): %s; in use %.1f MiB, budget %.1f MiB, largest "
                   "allocation %.1f MiB",
                   device->info.name, bytes, (double)bytes / 0x1p20, why, (double)pool->live / 0x1p20,
                   (double)od_pool_budget(pool) / 0x1p20, (double)device->info.max_alloc_bytes / 0x1p20);
}

/* Give idle buffers back, the largest first, until at most `keep` bytes are left. */
static void trim(od_device *device, uint64_t keep) {
    od_pool *pool = &device->pool;
    for (int c = OD_SIZE_CLASSES - 1; c >= 0; c--)
        while (pool->classes[c] && pool->idle > keep) {
            od_buffer *buffer = pool->classes[c];
            pool->classes[c] = buffer->next;
            pool->idle -= buffer->capacity;
            destroy(buffer);
        }
}

void od_pool_empty(od_device *device) {
    trim(device, 0);
}

od_status od_pool_count(od_device *device, size_t bytes) {
    od_pool *pool = &device->pool;
    const uint64_t budget = od_pool_budget(pool);
    if (bytes > budget || pool->live > budget - bytes)
        return refuse(device, bytes, "over the budget");
    trim(device, budget - pool->live - bytes);
    pool->live += bytes;
    if (pool->live + pool->idle > pool->peak)
        pool->peak = pool->live + pool->idle;
    return OD_OK;
}

void od_pool_uncount(od_device *device, size_t bytes) {
    device->pool.live -= bytes;
}

/* The smallest idle buffer of the size's own class, or of up to `wider` classes above it. */
static od_buffer *take_idle(od_device *device, size_t bytes, unsigned wider) {
    od_pool *pool = &device->pool;
    const bool same_size = device->quirks.flags & OD_QUIRK_SAME_SIZE;
    const unsigned first = class_of(class_capacity(bytes)), last = same_size ? first : first + wider;
    for (unsigned c = first; c <= last && c < OD_SIZE_CLASSES; c++)
        for (od_buffer **at = &pool->classes[c]; *at; at = &(*at)->next)
            if (same_size ? (*at)->bytes == bytes
                          : (*at)->capacity >= bytes) { /* exact-sized ones (see below) may be smaller */
                od_buffer *buffer = *at;
                *at = buffer->next;
                pool->idle -= buffer->capacity;
                return buffer;
            }
    return NULL;
}

/* Give back the idle buffers of up to `wider` classes below a new one, which will serve in their place. */
static void replace(od_device *device, size_t capacity, unsigned wider) {
    od_pool *pool = &device->pool;
    const unsigned last = class_of(capacity);
    for (unsigned c = last > wider ? last - wider : 0; c < last; c++)
        while (pool->classes[c]) {
            od_buffer *buffer = pool->classes[c];
            pool->classes[c] = buffer->next;
            pool->idle -= buffer->capacity;
            destroy(buffer);
        }
}

/* A CPU's buffer in huge pages, before anything is written to it: fewer address translations, and the cores read ahead
 * within a page only. No more than a wish, where the driver maps its own memory. */
static void wish_huge_pages(od_device *device, od_buffer *buffer) {
#ifdef MADV_HUGEPAGE
    if (device->info.type != OD_DEVICE_CPU || buffer->capacity < 2 * (size_t)HUGE_PAGE)
        return;
    cl_int error;
    char *at = clEnqueueMapBuffer(device->queue, buffer->mem, CL_TRUE, CL_MAP_WRITE_INVALIDATE_REGION, 0,
                                  buffer->capacity, 0, NULL, NULL, &error);
    if (error)
        return;
    const size_t before = (HUGE_PAGE - (uintptr_t)at % HUGE_PAGE) % HUGE_PAGE;
    if (madvise(at + before, (buffer->capacity - before) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE))
        od_log_topic("memory", "no huge pages for %zu bytes", buffer->capacity);
    (void)clEnqueueUnmapMemObject(device->queue, buffer->mem, at, 0, NULL, NULL);
#else
    (void)device;
    (void)buffer;
#endif
}

static od_status create_mem(od_device *device, od_buffer *buffer) {
    cl_int error = CL_SUCCESS;
    if (od_device_is_plan(device))
        return OD_OK;
    for (int attempt = 0; attempt < 2; attempt++) {
        buffer->mem = clCreateBuffer(device->context, CL_MEM_READ_WRITE, buffer->capacity, NULL, &error);
        if (error == CL_SUCCESS) {
            wish_huge_pages(device, buffer);
            return OD_OK;
        }
        buffer->mem = NULL;
        od_log_topic("memory", "a buffer of %zu bytes: %s; emptying the pool", buffer->capacity,
                     od_cl_error_name(error));
        od_pool_empty(device); /* then what the queue holds on to */
        (void)od_device_finish(device);
    }
    return refuse(device, buffer->bytes, od_cl_error_name(error));
}

static od_status acquire(od_device *device, size_t bytes, unsigned wider, od_buffer **out) {
    od_pool *pool = &device->pool;
    *out = NULL;
    const cl_int fault = od_fault(device, OD_FAULT_MEMORY);
    if (fault == CL_MEM_OBJECT_ALLOCATION_FAILURE)
        return refuse(device, bytes, od_cl_error_name(fault));
    if (fault)
        return od_cl_fail(fault, "clCreateBuffer", &device->info, "%zu bytes", bytes);
    if (bytes > device->info.max_alloc_bytes)
        return refuse(device, bytes, "larger than one allocation may be");
    od_buffer *buffer = take_idle(device, bytes, wider);
    if (!buffer) {
        const uint64_t budget = od_pool_budget(pool);
        size_t capacity = class_capacity(bytes);
        if (capacity > device->info.max_alloc_bytes || pool->live + capacity > budget)
            capacity = bytes < SMALLEST ? SMALLEST : bytes; /* near a limit: nothing to waste */
        if (pool->live + capacity > budget)
            return refuse(device, bytes, "over the budget");
        replace(device, capacity, wider);
        trim(device, budget - pool->live - capacity);
        buffer = calloc(1, sizeof *buffer);
        if (!buffer)
            return od_fail(OD_ERR_MEMORY, "no host memory for a buffer of %zu bytes", bytes);
        buffer->device = device;
        buffer->bytes = bytes;
        buffer->capacity = capacity;
        od_status status = create_mem(device, buffer);
        if (status) {
            destroy(buffer);
            return status;
        }
    }
    buffer->bytes = bytes;
    buffer->next = NULL;
    pool->live += buffer->capacity;
    pool->live_count++;
    if (pool->live + pool->idle > pool->peak)
        pool->peak = pool->live + pool->idle;
    *out = buffer;
    return OD_OK;
}

od_status od_buffer_create(od_device *device, size_t bytes, od_buffer **out) {
    return acquire(device, bytes, 0, out);
}

void od_buffer_release(od_buffer *buffer) {
    if (!buffer)
        return;
    od_pool *pool = &buffer->device->pool;
    od_buffer **slot = &pool->classes[class_of(buffer->capacity)];
    pool->live -= buffer->capacity;
    pool->live_count--;
    pool->idle += buffer->capacity;
    buffer->next = *slot;
    *slot = buffer;
}

od_memory_use od_device_memory(const od_device *device) {
    return (od_memory_use){device->pool.live, device->pool.peak, od_pool_budget(&device->pool)};
}

size_t od_buffer_size(const od_buffer *buffer) {
    return buffer->bytes;
}

od_device *od_buffer_device(const od_buffer *buffer) {
    return buffer->device;
}

cl_mem od_buffer_mem(const od_buffer *buffer) {
    return buffer->mem;
}

/* ---- spans ------------------------------------------------------------------------------------------------------- */

/* Elements to bytes; false where they can't be. */
static bool to_bytes(size_t elements, size_t *bytes) {
    return !__builtin_mul_overflow(elements, sizeof(float), bytes);
}

od_status od_span_create(od_device *device, size_t elements, od_span *out) {
    size_t bytes = 0;
    *out = OD_NO_SPAN;
    if (!to_bytes(elements, &bytes))
        return od_fail(OD_ERR_DEVICE_MEMORY, "no memory for %zu elements", elements);
    return od_buffer_create(device, bytes, &out->buffer);
}

od_status od_span_borrow(od_device *device, size_t elements, od_span *out) {
    enum { WIDER = 32 }; /* 16 times as large */
    size_t bytes = 0;
    *out = OD_NO_SPAN;
    if (!to_bytes(elements, &bytes))
        return od_fail(OD_ERR_DEVICE_MEMORY, "no memory for %zu elements", elements);
    return acquire(device, bytes, WIDER, &out->buffer);
}
