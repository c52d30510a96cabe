/* What TensorBoard shows of a run: scalars of steps and epochs, the head's off-diagonal entries as a histogram and as
 * an image, and views as the encoder saw them. Nothing here without t->tensorboard. The first write that fails ends it
 * with a warning, training goes on; a status other than OD_OK comes from the device. */
#ifndef TRAIN_WATCH_H
#define TRAIN_WATCH_H

#include "train/trainer.h"

/* Opens the event file after the present step; a file that cannot be made is an error. */
od_status od_watch_open(od_trainer *t);
void od_watch_start(od_trainer *t, double knn);
void od_watch_step(od_trainer *t, uint64_t step, double loss, const od_optim_rates *rates);
/* Both views of the first images of the last training step: before an evaluation overwrites them. */
od_status od_watch_views(od_trainer *t);
od_status od_watch_epoch(od_trainer *t, const od_epoch *epoch);
void od_watch_flush(od_trainer *t);

#endif
