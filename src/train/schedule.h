/* Learning rates and the EMA decay, as functions of the step alone. */
#ifndef TRAIN_SCHEDULE_H
#define TRAIN_SCHEDULE_H

#include "offdiag/train.h"

/* Rates for step 0..total-1: linear warm-up (both), then the encoder's decays by a half cosine over the whole run, or
 * over what the warm-up leaves of it, while the head's stays (solo-learn and SimSiam: a constant predictor rate) unless
 * it is to decay too. tau rises from ema to 1 by a half cosine (BYOL). per_epoch: steps of an epoch. */
od_optim_rates od_schedule_at(const od_train_config *config, uint64_t step, uint64_t total, uint64_t per_epoch);
/* The online classifier's learning rate: a half cosine. */
float od_schedule_online(const od_train_config *config, uint64_t step, uint64_t total);

#endif
