#include "train/schedule.h"

#include <math.h>

static const double pi = 3.14159265358979323846;

float od_schedule_online(const od_train_config *c, uint64_t step, uint64_t total) {
    return (float)(c->online_lr * 0.5 * (1 + cos(pi * (double)step / (double)total)));
}

/* The warm-up, as a factor of the learning rate. */
static double ramp_at(const od_train_config *c, double lr, uint64_t step, double warmup) {
    if (warmup <= 0 || lr <= 0)
        return 1;
    if (c->warmup_lr <= 0)
        return fmin(1, (double)(step + 1) / warmup);
    double start = c->warmup_lr / lr;
    return start + (1 - start) * fmin(1, (double)step / warmup);
}

od_optim_rates od_schedule_at(const od_train_config *c, uint64_t step, uint64_t total, uint64_t per_epoch) {
    double warmup = c->warmup_epochs > 0 ? (double)c->warmup_epochs * (double)per_epoch : c->warmup;
    double skipped = c->cosine_after_warmup ? fmin(warmup, (double)total) : 0;
    double left = (double)total - skipped;
    double done = (double)step / (double)total;
    double decayed = left > 0 ? fmax(0, (double)step - skipped) / left : 0;
    double half_cosine = 0.5 * (1 + cos(pi * decayed));
    double lr = c->lr_batch > 0 ? c->lr * c->batch / c->lr_batch : c->lr;
    double ramp = ramp_at(c, lr, step, warmup);
    double tau = c->ema_constant ? c->ema : 1 - (1 - c->ema) * 0.5 * (1 + cos(pi * done));
    return (od_optim_rates){.lr = (float)(lr * half_cosine * ramp),
                            .momentum = (float)c->momentum,
                            .weight_decay = (float)c->weight_decay,
                            .head_lr = (float)(lr * c->head_lr * (c->head_decay ? half_cosine : 1) * ramp),
                            .head_weight_decay = (float)c->head_weight_decay,
                            .ema_tau = (float)tau,
                            .beta2 = (float)c->beta2,
                            .lars_eta = (float)c->lars_eta,
                            .step = step};
}
