#include "model/directpred.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>

/* w = U diag(p) U^T with U's columns in u (d, d), row-major. */
static void recompose(float *w, const double *u, const double *p, int d) {
    for (int i = 0; i < d; i++)
        for (int j = 0; j <= i; j++) {
            double sum = 0;
            for (int k = 0; k < d; k++)
                sum += u[(size_t)i * d + k] * p[k] * u[(size_t)j * d + k];
            w[(size_t)i * d + j] = w[(size_t)j * d + i] = (float)sum;
        }
}

od_status od_directpred_weight(float *w, const float *f, int d, float eps) {
    size_t n = (size_t)d * d;
    od_status status = OD_OK;
    double *u = malloc(n * sizeof *u), *s = malloc(d * sizeof *s);
    if (!u || !s) {
        status = od_fail(OD_ERR_MEMORY, "no memory for the eigenvectors of a %dx%d matrix", d, d);
        goto out;
    }
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(f[i])) {
            status = od_fail(OD_ERR_NUMERIC, "DirectPred: the correlations of the projections are not finite");
            goto out;
        }
        u[i] = f[i];
    }
    lapack_int info = LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'L', d, u, d, s);
    if (info) {
        status =
            od_fail(OD_ERR_NUMERIC, "DirectPred: no eigenvectors of a %dx%d matrix (LAPACK says %d)", d, d, (int)info);
        goto out;
    }
    double largest = s[d - 1] > 0 ? s[d - 1] : 1; /* ascending */
    for (int i = 0; i < d; i++)
        s[i] = sqrt(fmax(s[i], 0) / largest) + eps;
    recompose(w, u, s, d);
out:
    free(u);
    free(s);
    return status;
}
