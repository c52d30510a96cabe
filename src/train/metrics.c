#include "train/metrics.h"

#include <float.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Mean over coordinates of the standard deviation of the rows scaled to length 1. */
static double normalised_std(const float *z, int rows, int d, double *mean, double *m2) {
    memset(mean, 0, (size_t)d * sizeof *mean);
    memset(m2, 0, (size_t)d * sizeof *m2);
    for (int r = 0; r < rows; r++) {
        const float *row = z + (size_t)r * d;
        double square = 0;
        for (int i = 0; i < d; i++)
            square += (double)row[i] * row[i];
        double scale = 1 / fmax(sqrt(square), 1e-12);
        for (int i = 0; i < d; i++) { /* Welford */
            double x = row[i] * scale, delta = x - mean[i];
            mean[i] += delta / (r + 1);
            m2[i] += delta * (x - mean[i]);
        }
    }
    double sum = 0;
    for (int i = 0; i < d; i++)
        sum += sqrt(m2[i] / rows);
    return sum / d;
}

/* c (rows, d) = z - column means; `scale` (d) gets the columns' lengths. A column whose length is rounding error beside
 * its mean is constant: it becomes exactly zero. */
static void centre(double *c, double *scale, const float *z, int rows, int d) {
    for (int i = 0; i < d; i++) {
        double mean = 0, square = 0;
        for (int r = 0; r < rows; r++)
            mean += z[(size_t)r * d + i];
        mean /= rows;
        for (int r = 0; r < rows; r++) {
            double x = z[(size_t)r * d + i] - mean;
            c[(size_t)r * d + i] = x;
            square += x * x;
        }
        scale[i] = sqrt(square);
        if (scale[i] <= 1e-12 * sqrt(rows) * fabs(mean)) {
            scale[i] = 0;
            for (int r = 0; r < rows; r++)
                c[(size_t)r * d + i] = 0;
        }
    }
}

/* Mean |correlation| over pairs of the centred columns that vary. */
static double mean_correlation(const double *c, const double *scale, int rows, int d, double *gram) {
    memset(gram, 0, (size_t)d * d * sizeof *gram);
    for (int r = 0; r < rows; r++) {
        const double *row = c + (size_t)r * d;
        for (int i = 0; i < d; i++)
            for (int j = 0; j < i; j++)
                gram[(size_t)i * d + j] += row[i] * row[j];
    }
    double sum = 0;
    size_t pairs = 0;
    for (int i = 0; i < d; i++)
        for (int j = 0; j < i; j++)
            if (scale[i] > 0 && scale[j] > 0) {
                sum += fabs(gram[(size_t)i * d + j]) / scale[i] / scale[j];
                pairs++;
            }
    return pairs ? sum / (double)pairs : 0;
}

/* Effective rank and participation ratio of singular values s (n), and their logarithms. */
static void spectrum(od_collapse *out, double *log_singular, const double *s, int n) {
    double sum = 0, entropy = 0, sum2 = 0, sum4 = 0;
    for (int i = 0; i < n; i++)
        sum += s[i];
    for (int i = 0; i < n && sum > 0; i++) {
        double p = s[i] / sum; /* scaled first, so that no power under- or overflows */
        entropy -= p > 0 ? p * log(p) : 0;
        sum2 += p * p;
        sum4 += p * p * p * p;
    }
    out->effective_rank = exp(entropy);
    out->participation = sum4 > 0 ? sum2 * sum2 / sum4 : 1;
    for (int i = 0; i < n && log_singular; i++)
        log_singular[i] = log(fmax(s[i], DBL_MIN));
}

od_status od_collapse_metrics(od_collapse *out, double *log_singular, const float *z, int rows, int d) {
    od_status status = OD_OK;
    if (rows < 1 || d < 1)
        return od_fail(OD_ERR_ARGUMENT, "collapse metrics of a (%d, %d) matrix", rows, d);
    for (size_t i = 0; i < (size_t)rows * d; i++)
        if (!isfinite(z[i]))
            return od_fail(OD_ERR_NUMERIC, "collapse metrics: z[%zu, %zu] of (%d, %d) is %f", i / d, i % d, rows, d,
                           z[i]);
    int n = rows < d ? rows : d;
    double *c = calloc((size_t)rows, d * sizeof *c);           /* (rows, d) */
    double *gram = malloc((size_t)d * d * sizeof *gram);       /* (d, d) */
    double *vectors = malloc(3 * (size_t)d * sizeof *vectors); /* two of (d) to work in, the columns' lengths */
    double *s = malloc((size_t)n * sizeof *s);                 /* (n) */
    if (!c || !gram || !vectors || !s) {
        status = od_fail(OD_ERR_MEMORY, "collapse metrics: no memory for a (%d, %d) matrix", rows, d);
        goto out;
    }
    double *scale = vectors + 2 * (size_t)d;
    out->z_std = normalised_std(z, rows, d, vectors, vectors + d);
    centre(c, scale, z, rows, d);
    out->mean_correlation = mean_correlation(c, scale, rows, d, gram);
    /* Values of the matrix itself, not of its Gram matrix: the square would lose half of the digits of small ones.
     * LAPACK reads the rows as columns: the transpose has the same values. */
    double unused;
    lapack_int info = LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'N', d, rows, c, d, s, &unused, 1, &unused, 1);
    if (info) {
        status =
            od_fail(OD_ERR_NUMERIC, "collapse metrics: the SVD of a (%d, %d) matrix failed (%d)", rows, d, (int)info);
        goto out;
    }
    spectrum(out, log_singular, s, n);
out:
    free(c);
    free(gram);
    free(vectors);
    free(s);
    return status;
}
