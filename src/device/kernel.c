/* Kernels by name, and their launches. Nothing is allocated for a launch. */
#include <inttypes.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "device/internal.h"
#include "device/plan.h"

enum { PARAMETERS_MAX = 64 };

/* FNV-1a over the three names, with their ends. */
static uint32_t hash_names(const char *const names[3]) {
    uint32_t h = 2166136261u;
    for (int i = 0; i < 3; i++) {
        for (const char *at = names[i]; *at; at++)
            h = (h ^ (unsigned char)*at) * 16777619u;
        h = (h ^ 0xffu) * 16777619u;
    }
    return h;
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */

static void free_kernel(od_kernel *k) {
    if (k->kernel)
        (void)clReleaseKernel(k->kernel);
    free(k->program);
    free(k->options);
    free(k->name);
    free(k->parameters);
    free(k);
}

static bool work_group_info(const od_kernel *k, cl_kernel_work_group_info what, void *value, size_t size) {
    return clGetKernelWorkGroupInfo(k->kernel, k->device->id, what, size, value, NULL) == CL_SUCCESS;
}

static bool argument_info(const od_kernel *k, unsigned i, cl_kernel_arg_info what, void *value, size_t size) {
    return clGetKernelArgInfo(k->kernel, i, what, size, value, NULL) == CL_SUCCESS;
}

static unsigned char size_of_type(const char *name) {
    static const struct {
        const char *name;
        unsigned char size;
    } types[] = {{"float", 4},  {"int", 4},  {"uint", 4},  {"unsigned int", 4}, {"long", 8},  {"ulong", 8},
                 {"size_t", 8}, {"char", 1}, {"uchar", 1}, {"short", 2},        {"ushort", 2}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, name) == 0)
            return types[i].size;
    return 0;
}

/* What the driver knows of each parameter, so that a wrong argument is told by its number on every driver. */
static void describe_parameter(const od_kernel *k, unsigned i, od_parameter *p) {
    cl_kernel_arg_address_qualifier address = 0;
    char type[128] = "";
    if (!argument_info(k, i, CL_KERNEL_ARG_ADDRESS_QUALIFIER, &address, sizeof address))
        return;
    p->known = true;
    p->kind = address == CL_KERNEL_ARG_ADDRESS_LOCAL     ? OD_ARG_LOCAL
              : address == CL_KERNEL_ARG_ADDRESS_PRIVATE ? OD_ARG_SCALAR
                                                         : OD_ARG_BUFFER;
    if (p->kind == OD_ARG_SCALAR && argument_info(k, i, CL_KERNEL_ARG_TYPE_NAME, type, sizeof type - 1))
        p->size = size_of_type(type);
}

static od_status describe_kernel(od_kernel *k) {
    cl_uint count = 0;
    cl_ulong local = 0;
    cl_int error = clGetKernelInfo(k->kernel, CL_KERNEL_NUM_ARGS, sizeof count, &count, NULL);
    if (error || count > PARAMETERS_MAX)
        return od_cl_fail(error, "clGetKernelInfo", &k->device->info, "%s:%s, %u parameters", k->program, k->name,
                          count);
    if ((k->device->quirks.flags & OD_QUIRK_GROUP_SIZE) ||
        !work_group_info(k, CL_KERNEL_WORK_GROUP_SIZE, &k->max_work_group, sizeof k->max_work_group))
        k->max_work_group = k->device->info.max_work_group;
    if (work_group_info(k, CL_KERNEL_LOCAL_MEM_SIZE, &local, sizeof local))
        k->local_bytes = local;
    k->parameter_count = count;
    k->parameters = calloc(count + 1, sizeof *k->parameters);
    if (!k->parameters)
        return od_fail(OD_ERR_MEMORY, "no memory for kernel %s:%s", k->program, k->name);
    for (unsigned i = 0; i < count; i++)
        describe_parameter(k, i, &k->parameters[i]);
    return OD_OK;
}

static od_status create_kernel(od_kernel *k) {
    od_program *program;
    cl_int error = CL_SUCCESS;
    if (od_device_is_plan(k->device)) {
        k->max_work_group = k->device->info.max_work_group;
        return OD_OK;
    }
    for (int attempt = 0; attempt < 2; attempt++) {
        od_status status = od_program_get(k->device, k->program, k->options, attempt > 0, &program);
        if (status)
            return status;
        k->kernel = clCreateKernel(program->program, k->name, &error);
        if (error == CL_SUCCESS)
            return describe_kernel(k);
        k->kernel = NULL;
        if (!program->from_cache)
            break;
        od_log_topic("cache", "%s:%s: %s from a cached binary; building it", k->program, k->name,
                     od_cl_error_name(error));
        k->device->stats.rejected++;
    }
    if (error == CL_INVALID_KERNEL_NAME)
        return od_fail(OD_ERR_ARGUMENT, "there is no kernel '%s' in %s.cl (options '%s')", k->name, k->program,
                       k->options);
    return od_cl_fail(error, "clCreateKernel", &k->device->info, "%s:%s", k->program, k->name);
}

od_status od_kernel_get(od_device *device, const char *program, const char *options, const char *name,
                        od_kernel **out) {
    od_status status;
    options = options ? options : "";
    od_kernel **slot = &device->kernels[hash_names((const char *const[]){program, options, name}) % OD_KERNEL_SLOTS];
    *out = NULL;
    for (od_kernel *k = *slot; k; k = k->next)
        if (strcmp(k->name, name) == 0 && strcmp(k->program, program) == 0 && strcmp(k->options, options) == 0) {
            *out = k;
            return OD_OK;
        }
    od_kernel *k = calloc(1, sizeof *k);
    if (!k)
        return od_fail(OD_ERR_MEMORY, "no memory for kernel %s:%s", program, name);
    k->device = device;
    k->program = strdup(program);
    k->options = strdup(options);
    k->name = strdup(name);
    if (!k->program || !k->options || !k->name)
        status = od_fail(OD_ERR_MEMORY, "no memory for kernel %s:%s", program, name);
    else
        status = create_kernel(k);
    if (status) {
        free_kernel(k);
        return status;
    }
    k->next = *slot;
    *slot = k;
    *out = k;
    return OD_OK;
}

void od_kernels_release(od_device *device) {
    for (int i = 0; i < OD_KERNEL_SLOTS; i++)
        while (device->kernels[i]) {
            od_kernel *k = device->kernels[i];
            device->kernels[i] = k->next;
            free_kernel(k);
        }
}

size_t od_kernel_max_work_group(const od_kernel *kernel) {
    return kernel->max_work_group;
}

uint64_t od_kernel_local_bytes(const od_kernel *kernel) {
    return kernel->local_bytes;
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

static const char *const kind_names[] = {
    [OD_ARG_BUFFER] = "a buffer", [OD_ARG_SCALAR] = "a scalar", [OD_ARG_LOCAL] = "local memory"};

static od_status check_argument(const od_kernel *k, unsigned i, const od_arg *arg) {
    static const od_parameter unknown;
    const od_parameter *p = k->parameters ? &k->parameters[i] : &unknown;
    if (p->known && p->kind != arg->kind)
        return od_fail(OD_ERR_ARGUMENT, "kernel %s:%s, argument %u: expected %s, found %s", k->program, k->name, i,
                       kind_names[p->kind], kind_names[arg->kind]);
    if (p->size && arg->size != p->size)
        return od_fail(OD_ERR_ARGUMENT, "kernel %s:%s, argument %u: expected a scalar of %u bytes, found %zu",
                       k->program, k->name, i, p->size, arg->size);
    if (arg->kind == OD_ARG_BUFFER && arg->value.buffer && od_buffer_device(arg->value.buffer) != k->device)
        return od_fail(OD_ERR_ARGUMENT, "kernel %s:%s, argument %u: a buffer of another device", k->program, k->name,
                       i);
    return OD_OK;
}

/* Also sums the local memory that the arguments ask for. */
static od_status set_arguments(od_kernel *k, const od_arg *args, size_t count, uint64_t *local) {
    if (k->kernel && count != k->parameter_count)
        return od_fail(OD_ERR_ARGUMENT, "kernel %s:%s: expected %u arguments, found %zu", k->program, k->name,
                       k->parameter_count, count);
    for (unsigned i = 0; i < count; i++) {
        const od_arg *arg = &args[i];
        const void *value = &arg->value;
        size_t size = arg->size;
        cl_mem mem;
        od_status status = check_argument(k, i, arg);
        if (status)
            return status;
        if (arg->kind == OD_ARG_BUFFER) {
            mem = arg->value.buffer ? od_buffer_mem(arg->value.buffer) : NULL;
            value = mem ? (const void *)&mem : NULL;
            size = sizeof(cl_mem);
        } else if (arg->kind == OD_ARG_LOCAL) {
            value = NULL;
            *local += size;
        }
        cl_int error = k->kernel ? clSetKernelArg(k->kernel, i, size, value) : CL_SUCCESS;
        if (error)
            return od_cl_fail(error, "clSetKernelArg", &k->device->info, "kernel %s:%s, argument %u of %zu bytes",
                              k->program, k->name, i, size);
    }
    return OD_OK;
}

/* Round up to whole work-groups, and check what the device and the kernel allow. */
static od_status check_range(const od_kernel *k, od_range *r, uint64_t local_bytes) {
    const od_device_info *info = &k->device->info;
    size_t group = 1;
    local_bytes += k->local_bytes;
    if (local_bytes > info->local_bytes)
        return od_fail(OD_ERR_UNSUPPORTED, "kernel %s:%s asks for %" PRIu64 " bytes of local memory, %s has %" PRIu64,
                       k->program, k->name, local_bytes, info->name, info->local_bytes);
    if (r->local[0] == 0)
        return OD_OK;
    for (int d = 0; d < 3; d++) {
        size_t local = r->local[d] ? r->local[d] : 1, rest = r->global[d] % local;
        if ((info->max_work_item[d] && local > info->max_work_item[d]) ||
            __builtin_mul_overflow(group, local, &group) ||
            (rest && __builtin_add_overflow(r->global[d], local - rest, &r->global[d])))
            return od_fail(OD_ERR_ARGUMENT, "kernel %s:%s: local size %zu in dimension %d is too large for %s",
                           k->program, k->name, local, d, info->name);
        r->local[d] = local;
    }
    if (group > k->max_work_group)
        return od_fail(OD_ERR_UNSUPPORTED, "kernel %s:%s: a work-group of %zu x %zu x %zu = %zu, at most %zu on %s",
                       k->program, k->name, r->local[0], r->local[1], r->local[2], group, k->max_work_group,
                       info->name);
    return OD_OK;
}

static void note_use(od_kernel *k, const od_range *r, uint64_t local_bytes) {
    const size_t group = r->local[0] * r->local[1] * r->local[2];
    if (group > k->largest_group)
        k->largest_group = group;
    if (local_bytes > k->largest_argument_local)
        k->largest_argument_local = local_bytes;
}

static cl_int enqueue(const od_kernel *k, const od_range *r, cl_event *event) {
    const od_device *device = k->device;
    cl_uint dimensions = r->global[2] > 1 ? 3 : r->global[1] > 1 ? 2 : 1;
    return clEnqueueNDRangeKernel(device->queue, k->kernel, dimensions, NULL, r->global, r->local[0] ? r->local : NULL,
                                  0, NULL, event);
}

od_status od_launch(od_kernel *k, od_range range, const od_arg *args, size_t arg_count) {
    od_device *device = k->device;
    uint64_t local = 0;
    cl_event event = NULL;
    if (range.global[0] == 0 || range.global[1] == 0 || range.global[2] == 0)
        return OD_OK; /* before OpenCL 2.1 that is an error to drivers */
    od_status status = set_arguments(k, args, arg_count, &local);
    if (!status)
        status = check_range(k, &range, local);
    if (status)
        return status;
    note_use(k, &range, local);
    if (od_device_is_plan(device))
        return OD_OK;
    cl_int error = od_fault(device, OD_FAULT_LAUNCH);
    if (!error)
        error = enqueue(k, &range, device->profiling ? &event : NULL);
    if (error == CL_MEM_OBJECT_ALLOCATION_FAILURE) { /* drivers that allocate at first use */
        od_pool_empty(device);
        status = od_device_finish(device);
        error = status ? error : enqueue(k, &range, device->profiling ? &event : NULL);
    }
    if (error)
        return od_cl_fail(error, "clEnqueueNDRangeKernel", &device->info,
                          "kernel %s:%s, global %zu x %zu x %zu, local %zu x %zu x %zu", k->program, k->name,
                          range.global[0], range.global[1], range.global[2], range.local[0], range.local[1],
                          range.local[2]);
    if (event)
        od_profile_add(device, k, range.work, event);
    od_work_count(device, range.work);
    od_device_enqueued(device);
    return OD_OK;
}
