/* The off-diagonal prediction head of Wen & Li 2022: p = z W with W = I + offdiag(V). V (d, d) is kept, W is made from
 * it, so that weight decay, momentum, EMA and clipping cannot touch the diagonal. */
#ifndef OFFDIAG_OPS_HEAD_H
#define OFFDIAG_OPS_HEAD_H

#include "offdiag/device.h"

/* w (d, d) = I + offdiag(v): the diagonal is exactly 1.0f, whatever v's diagonal holds. */
od_status od_offdiag_weight(od_device *device, od_span w, od_span v, int d);
/* dv = offdiag(dw), in place: the diagonal becomes exactly 0.0f. */
od_status od_offdiag_mask(od_device *device, od_span dw, int d);
/* out[0] = Frobenius norm of offdiag(v), out[1] = its largest |entry|. */
od_status od_offdiag_norm(od_device *device, od_span out, od_span v, int d);

#endif
