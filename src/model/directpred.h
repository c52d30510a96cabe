/* DirectPred (Tian, Chen & Ganguli 2021): a linear head that no gradient trains. F, a running average of the
 * correlation matrix E[z z^T] of the projector's outputs, has eigenvalues s and eigenvectors U, and W = U
 * diag(sqrt(max(s, 0) / max s) + eps) U^T F and W are kept with the batch-norm statistics. */
#ifndef MODEL_DIRECTPRED_H
#define MODEL_DIRECTPRED_H

#include "offdiag/device.h"

/* w (d, d) from f (d, d), in double precision on the host; both symmetric. OD_ERR_NUMERIC where f is not finite. */
od_status od_directpred_weight(float *w, const float *f, int d, float eps);

#endif
