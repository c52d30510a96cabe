/* Optimisers over contiguous ranges of the parameter arena. */
#ifndef OFFDIAG_OPS_OPTIM_H
#define OFFDIAG_OPS_OPTIM_H

#include "offdiag/device.h"

/* SGD with momentum and coupled weight decay, as PyTorch: g = grad + wd p; m = mu m + g; p -= lr m (first step: m = g
 * when m starts at 0). Optional Nesterov is not offered: no recipe here uses it. */
od_status od_sgd_step(od_device *device, od_span param, od_span momentum, od_span grad, size_t count, float lr,
                      float mu, float weight_decay);
/* Exponential moving average: target = tau target + (1 - tau) online (BYOL, Grill et al. 2020, eq. 1). */
od_status od_ema_step(od_device *device, od_span target, od_span online, size_t count, float tau);
/* x[i] = scale * N(0, 1), from Philox with (seed, stream): the same on every device up to the last bits of log and cos.
 */
od_status od_fill_normal(od_device *device, od_span x, size_t count, float scale, uint64_t seed, uint64_t stream);
od_status od_fill_uniform(od_device *device, od_span x, size_t count, float low, float high, uint64_t seed,
                          uint64_t stream);

#endif
