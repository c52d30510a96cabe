/* The last stage of sums that other operations start. */
#ifndef OPS_REDUCE_H
#define OPS_REDUCE_H

#include "offdiag/device.h"

/* out[0] = (accumulate ? out[0] : 0) + factor * the sum of partials (count), in a fixed order. */
od_status od_sum_partials(od_device *device, od_span out, od_span partials, size_t count, float factor,
                          bool accumulate);

#endif
