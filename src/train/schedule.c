#include "train/schedule.h"

#include <math.h>

od_optim_rates od_schedule_at(const od_train_config *c, uint64_t step, uint64_t total) {
    const double pi = 3.14159265358979323846;
    double done = (double)step / (double)total;
    double half_cosine = 0.5 * (1 + cos(pi * done));
    double ramp = c->warmup > 0 ? fmin(1, (double)(step + 1) / c->warmup) : 1;
    double tau = c->ema_constant ? c->ema : 1 - (1 - c->ema) * half_cosine;
    return (od_optim_rates){.lr = (float)(c->lr * half_cosine * ramp),
                           .momentum = (float)c->momentum,
                           .weight_decay = (float)c->weight_decay,
                           .head_lr = (float)(c->lr * c->head_lr * ramp),
                           .head_weight_decay = (float)c->head_weight_decay,
                           .ema_tau = (float)tau};
}
