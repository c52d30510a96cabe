/* A device that is only described. Its buffers have sizes and no memory (reads give zeros), its kernels are not built
 * and launches do not run; all are checked and remembered. So operations, models and whole training steps can be asked
 * which programs a device like it would need, on a machine without it and without any OpenCL driver. */
#ifndef DEVICE_PLAN_H
#define DEVICE_PLAN_H

#include "offdiag/device.h"

od_status od_device_plan(const od_device_info *info, const od_device_options *options, od_device **out);
bool od_device_is_plan(const od_device *device);

/* What was asked of a device; strings are the device's. */
typedef struct od_kernel_use {
    const char *program, *options, *name; /* options without those that all programs get */
    size_t work_group;                    /* the largest that was launched; 0: left to the driver, or not launched */
    uint64_t local_bytes;                 /* the most that arguments asked for */
} od_kernel_use;

/* Every kernel of od_kernel_get so far, by program, options and name; malloc'd. */
od_status od_device_kernels(const od_device *device, od_kernel_use **uses, size_t *count);

/* What the driver's compiler gets: the program's source, and all options; malloc'd. */
od_status od_program_source(const char *name, char **source);
od_status od_program_options(const od_device *device, const char *options, char **all);

#endif
