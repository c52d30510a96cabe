/* Optimisers over contiguous ranges of the parameter arena. */
#ifndef OFFDIAG_OPS_OPTIM_H
#define OFFDIAG_OPS_OPTIM_H

#include "offdiag/device.h"

/* What a step works on, `count` elements of each. With a target the step also moves it, in the same pass: target = tau
 * target + (1 - tau) param, of the new parameters (BYOL, Grill et al. 2020, eq. 1). */
typedef struct od_optim_range {
    od_span param, momentum, grad;
    od_span second; /* Adam's mean of squares; else unused */
    od_span target; /* OD_NO_SPAN: none */
    size_t count;
    float tau;
} od_optim_range;

/* SGD with momentum and coupled weight decay, as PyTorch: g = grad + wd p; m = mu m + g; p -= lr m (first step: m = g
 * when m starts at 0). Optional Nesterov is not offered: no recipe here uses it. */
od_status od_sgd_step(od_device *device, const od_optim_range *range, float lr, float mu, float weight_decay);

/* Adam (Kingma & Ba 2015), and AdamW (Loshchilov & Hutter 2019) with decoupled weight decay, as PyTorch:
 *   g = grad + wd p (AdamW: p *= 1 - lr wd); m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2
 *   p -= lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
 * step counts from 1. */
typedef struct od_adam_rates {
    float lr, beta1, beta2, eps, weight_decay;
    bool decoupled;
    uint64_t step;
} od_adam_rates;
od_status od_adam_step(od_device *device, const od_optim_range *range, const od_adam_rates *adam);

/* LARS (You et al. 2017) as BYOL's recipes have it (clipped). Of a tensor that adapts, with norms |p| and |g|:
 *   f = min(eta |p| / (|g| + wd |p| + 1e-8) / lr, 1); m = mu m + f (grad + wd p); p -= lr m
 * f is 1, and there is no decay, where |p| or |g| is 0. A tensor that does not adapt (biases, batch norm) takes a step
 * of SGD. The norms are sums in two stages in a fixed order. */
typedef struct od_lars_tensor {
    size_t offset, count; /* in the range */
    bool adapt, decay;
} od_lars_tensor;
typedef struct od_lars od_lars;
od_status od_lars_create(od_device *device, const od_lars_tensor *tensors, size_t count, od_lars **out);
void od_lars_destroy(od_lars *lars); /* NULL is fine */
/* The tensors of `range`; elements between them stay as they are. */
od_status od_lars_step(od_lars *lars, const od_optim_range *range, float lr, float mu, float weight_decay, float eta);

/* x[i] = scale * N(0, 1), from Philox with (seed, stream): the same on every device up to the last bits of log and cos.
 */
od_status od_fill_normal(od_device *device, od_span x, size_t count, float scale, uint64_t seed, uint64_t stream);
od_status od_fill_uniform(od_device *device, od_span x, size_t count, float low, float high, uint64_t seed,
                          uint64_t stream);

#endif
