/* What a device can do at most, measured, to compare kernels with. */
#ifndef OFFDIAG_OPS_LIMITS_H
#define OFFDIAG_OPS_LIMITS_H

#include "offdiag/device.h"

typedef struct od_limits {
    double gflop_per_s; /* float32 multiply-adds that stay in registers; each is two operations */
    double gb_per_s;    /* reading and writing memory larger than the caches; 1e9 bytes */
} od_limits;

/* The best of several launches, under a second in all. shape: how the kernels are cut, OD_FAMILY_CPU or _GPU; AUTO: as
 * the device's type asks, whatever family was forced on it. */
od_status od_limits_measure(od_device *device, od_family shape, od_limits *limits);

#endif
