#include "device/plan.h"

#include <stdlib.h>
#include <string.h>

#include "device/internal.h"

od_status od_device_plan(const od_device_info *info, const od_device_options *options, od_device **out) {
    od_device *device = calloc(1, sizeof *device);
    *out = device;
    if (!device)
        return od_fail(OD_ERR_MEMORY, "no memory for a description of %s", info->name);
    device->info = *info;
    device->family = od_family_of(options ? options->family : OD_FAMILY_AUTO, info->type);
    device->quirks = od_quirks_of(info, device->info.note, sizeof device->info.note);
    device->tuning = od_tuning_open(info);
    device->pool.budget = options && options->memory_bytes ? options->memory_bytes : info->memory_bytes / 5 * 4;
    return OD_OK;
}

bool od_device_is_plan(const od_device *device) {
    return !device->context;
}

static int by_names(const void *a, const void *b) {
    const od_kernel_use *x = a, *y = b;
    int order = strcmp(x->program, y->program);
    if (!order)
        order = strcmp(x->options, y->options);
    return order ? order : strcmp(x->name, y->name);
}

od_status od_device_kernels(const od_device *device, od_kernel_use **uses, size_t *count) {
    size_t n = 0;
    for (int slot = 0; slot < OD_KERNEL_SLOTS; slot++)
        for (const od_kernel *k = device->kernels[slot]; k; k = k->next)
            n++;
    *count = 0;
    *uses = calloc(n + 1, sizeof **uses);
    if (!*uses)
        return od_fail(OD_ERR_MEMORY, "no memory for a list of %zu kernels", n);
    for (int slot = 0; slot < OD_KERNEL_SLOTS; slot++)
        for (const od_kernel *k = device->kernels[slot]; k; k = k->next)
            (*uses)[(*count)++] =
                (od_kernel_use){k->program, k->options, k->name, k->largest_group, k->largest_argument_local};
    qsort(*uses, *count, sizeof **uses, by_names);
    return OD_OK;
}
