/* Losses. Each writes its value to loss[0] on the device (no host wait) and the gradient at its input. `scale`
 * multiplies both (1/2 for each half of a symmetrised loss, 1/k for k micro-batches); accumulate adds to loss[0] (not
 * to gradients).
 *
 * The two views of a batch are rows 0..N-1 and N..2N-1 of one matrix; `shift` names the partner: row i is compared with
 * target row (i + shift) mod rows. shift N with rows 2N is the symmetrised loss in one call. */
#ifndef OFFDIAG_OPS_LOSS_H
#define OFFDIAG_OPS_LOSS_H

#include "offdiag/device.h"

/* Negative cosine similarity, loss = -scale mean_i <p_i, t_i> / (|p_i| |t_i|), |.| at least 1e-8 (SimSiam, Chen & He
 * 2021, eq. 1; BYOL's is 2 + 2 times it). dp (rows, d). dt (rows, d) is the gradient at the target for the ablation
 * without stop-gradient; OD_NO_SPAN: stop-gradient. */
od_status od_cosine_loss(od_device *device, od_span loss, od_span dp, od_span dt, od_span p, od_span target, int rows,
                         int d, int shift, float scale, bool accumulate);

/* Mean squared error, loss = scale mean_{i,j} (p_ij - t_ij)^2, over rows*d elements. With p and t batch-normalised
 * without affine (od_bn_forward) this is the normalised loss of Wen & Li 2022; dp then goes through od_bn_backward. */
od_status od_squared_error(od_device *device, od_span loss, od_span dp, od_span dt, od_span p, od_span target, int rows,
                           int d, int shift, float scale, bool accumulate);

/* Softmax cross-entropy of logits (rows, classes) with labels (rows, int32): loss = scale mean_i -log
 * softmax_i[label_i]; correct[0] = the number of rows whose largest logit (first of equals) is the label, as float;
 * dlogits and correct may be OD_NO_SPAN. A label outside [0, classes) contributes nothing and is not counted as
 * correct; the mean is over all rows. labels_offset is in elements. */
od_status od_softmax_cross_entropy(od_device *device, od_span loss, od_span correct, od_span dlogits, od_span logits,
                                   od_buffer *labels, size_t labels_offset, int rows, int classes, float scale,
                                   bool accumulate);

#endif
