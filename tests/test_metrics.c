/* Collapse metrics on matrices whose spectra are known. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "train/metrics.h"

static void near(double got, double want, double tolerance, const char *what) {
    cr_assert(fabs(got - want) <= tolerance * fmax(1, fabs(want)), "%s: got %.12g, want %.12g", what, got, want);
}

/* Row i of the Hadamard matrix of order 16, entry j: +-1, rows orthogonal; row 0 is constant, the others sum to 0. */
static double hadamard(int i, int j) {
    return __builtin_popcount(i & j) & 1 ? -1 : 1;
}

/* z (16, d): column k is the Hadamard row k + 1 times s[k] / 4, plus a mean: centred singular values are exactly s. */
static void make(float *z, const double *s, int d, double mean) {
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < d; k++)
            z[r * d + k] = (float)(hadamard(k + 1, r) * s[k] / 4 + mean);
}

Test(metrics, known_spectrum) {
    const double s[4] = {8, 4, 2, 2};
    float z[16 * 4];
    double logs[4];
    od_collapse m;
    make(z, s, 4, 3);
    cr_assert_eq(od_collapse_metrics(&m, logs, z, 16, 4), OD_OK);
    double entropy = 0, p[4] = {0.5, 0.25, 0.125, 0.125};
    for (int i = 0; i < 4; i++)
        entropy -= p[i] * log(p[i]);
    near(m.effective_rank, exp(entropy), 1e-12, "effective rank");
    near(m.participation, (64. + 16 + 4 + 4) * (64 + 16 + 4 + 4) / (64. * 64 + 16 * 16 + 4 * 4 + 4 * 4), 1e-12,
         "participation");
    near(m.mean_correlation, 0, 1e-12, "correlation");
    for (int i = 0; i < 4; i++)
        near(logs[i], log(s[i]), 1e-12, "log singular value");
}

Test(metrics, flat_spectrum_has_full_rank) {
    double s[15];
    float z[16 * 15];
    od_collapse m;
    for (int i = 0; i < 15; i++)
        s[i] = 4;
    make(z, s, 15, 0);
    cr_assert_eq(od_collapse_metrics(&m, NULL, z, 16, 15), OD_OK);
    near(m.effective_rank, 15, 1e-12, "effective rank");
    near(m.participation, 15, 1e-12, "participation");
    near(m.z_std, 1 / sqrt(15), 1e-6, "std of normalised z"); /* balanced signs: the healthy value, exactly */
}

Test(metrics, one_direction) {
    float z[16 * 3];
    od_collapse m;
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 3; k++)
            z[r * 3 + k] = (float)((k == 1 ? -1 : 1) * hadamard(5, r) * (k + 1));
    cr_assert_eq(od_collapse_metrics(&m, NULL, z, 16, 3), OD_OK);
    near(m.effective_rank, 1, 1e-6, "effective rank");
    near(m.participation, 1, 1e-6, "participation");
    near(m.mean_correlation, 1, 1e-12, "correlation");
}

Test(metrics, known_correlation) {
    /* Two columns a and (a + b) with a, b orthogonal and equally long: correlation 1/sqrt(2). */
    float z[16 * 2];
    od_collapse m;
    for (int r = 0; r < 16; r++) {
        z[2 * r] = (float)hadamard(1, r);
        z[2 * r + 1] = (float)(hadamard(1, r) + hadamard(2, r));
    }
    cr_assert_eq(od_collapse_metrics(&m, NULL, z, 16, 2), OD_OK);
    near(m.mean_correlation, 1 / sqrt(2), 1e-12, "correlation");
}

Test(metrics, constant_matrix_is_collapsed) {
    float z[50 * 7];
    double logs[7];
    od_collapse m;
    for (int i = 0; i < 50 * 7; i++)
        z[i] = 0.1f * (float)(i % 7);
    cr_assert_eq(od_collapse_metrics(&m, logs, z, 50, 7), OD_OK);
    near(m.effective_rank, 1, 1e-12, "effective rank");
    near(m.participation, 1, 1e-12, "participation");
    near(m.z_std, 0, 1e-7, "std of normalised z");
    near(m.mean_correlation, 0, 0, "correlation");
    for (int i = 0; i < 7; i++)
        cr_assert(isfinite(logs[i]));
    float zeros[6] = {0};
    cr_assert_eq(od_collapse_metrics(&m, NULL, zeros, 2, 3), OD_OK);
    near(m.effective_rank, 1, 0, "effective rank of zeros");
    near(m.z_std, 0, 0, "std of zeros");
}

Test(metrics, fewer_rows_than_columns) {
    /* Transposed roles: 4 rows, 16 columns. Centring 4 rows leaves rank 3 at most. */
    float z[4 * 16];
    double logs[4];
    od_collapse m;
    for (int r = 0; r < 4; r++)
        for (int k = 0; k < 16; k++)
            z[r * 16 + k] = (float)hadamard(r + 1, k);
    cr_assert_eq(od_collapse_metrics(&m, logs, z, 4, 16), OD_OK);
    near(m.effective_rank, 3, 1e-6, "effective rank"); /* 4 orthogonal rows less their mean: three equal values */
    for (int i = 0; i < 3; i++)
        near(logs[i], log(4), 1e-9, "log singular value");
    cr_assert_lt(logs[3], -25);
}

Test(metrics, scale_does_not_matter) {
    const double s[3] = {4, 2, 1};
    float z[16 * 3];
    od_collapse small, large;
    make(z, s, 3, 0);
    for (int i = 0; i < 48; i++)
        z[i] *= 1e-30f;
    cr_assert_eq(od_collapse_metrics(&small, NULL, z, 16, 3), OD_OK);
    for (int i = 0; i < 48; i++)
        z[i] *= 1e36f;
    cr_assert_eq(od_collapse_metrics(&large, NULL, z, 16, 3), OD_OK);
    near(small.effective_rank, large.effective_rank, 1e-6, "effective rank");
    near(small.participation, large.participation, 1e-6, "participation");
}

Test(metrics, bad_input) {
    float z[6] = {1, 2, 3, 4, NAN, 6};
    od_collapse m;
    cr_assert_eq(od_collapse_metrics(&m, NULL, z, 2, 3), OD_ERR_NUMERIC);
    z[4] = INFINITY;
    cr_assert_eq(od_collapse_metrics(&m, NULL, z, 2, 3), OD_ERR_NUMERIC);
    cr_assert_eq(od_collapse_metrics(&m, NULL, z, 0, 3), OD_ERR_ARGUMENT);
}
