#include "reference/loss_ref.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

static double dot(const float *a, const float *b, int d) {
    double sum = 0;
    for (int k = 0; k < d; k++)
        sum += (double)a[k] * b[k];
    return sum;
}

/* d (a / |a|) / da applied to v: (v - n <n, v>) / |a|, n = a / |a|; below 1e-8 the length is a constant. */
static void unit_backward(double *out, const float *a, const double *v, int d) {
    double length = sqrt(dot(a, a, d));
    bool clamped = length <= 1e-8;
    if (clamped)
        length = 1e-8;
    double along = 0;
    for (int k = 0; k < d; k++)
        along += a[k] / length * v[k];
    for (int k = 0; k < d; k++)
        out[k] = (v[k] - (clamped ? 0 : along * a[k] / length)) / length;
}

double loss_ref_cosine(double *dp, double *dt, const float *p, const float *target, int rows, int d, int shift,
                       double scale) {
    double loss = 0, v[8192];
    for (int i = 0; i < rows; i++) {
        int j = (i + shift) % rows;
        const float *a = p + (size_t)i * (size_t)d, *b = target + (size_t)j * (size_t)d;
        double a_length = fmax(sqrt(dot(a, a, d)), 1e-8), b_length = fmax(sqrt(dot(b, b, d)), 1e-8);
        loss -= scale * dot(a, b, d) / a_length / b_length / rows;
        for (int k = 0; dp && k < d; k++)
            v[k] = -scale / rows * b[k] / b_length;
        if (dp)
            unit_backward(dp + (size_t)i * (size_t)d, a, v, d);
        for (int k = 0; dt && k < d; k++)
            v[k] = -scale / rows * a[k] / a_length;
        if (dt)
            unit_backward(dt + (size_t)j * (size_t)d, b, v, d);
    }
    return loss;
}

double loss_ref_squared(double *dp, double *dt, const float *p, const float *target, int rows, int d, int shift,
                        double scale) {
    double loss = 0, count = (double)rows * d;
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < d; k++) {
            size_t at = (size_t)i * (size_t)d + (size_t)k;
            size_t other = (size_t)((i + shift) % rows) * (size_t)d + (size_t)k;
            double e = (double)p[at] - target[other];
            loss += scale * e * e / count;
            if (dp)
                dp[at] = 2 * scale * e / count;
            if (dt)
                dt[other] = -2 * scale * e / count;
        }
    return loss;
}

double loss_ref_cross_entropy(double *dlogits, double *correct, const float *logits, const int32_t *labels, int rows,
                              int classes, double scale) {
    double loss = 0;
    *correct = 0;
    for (int i = 0; i < rows; i++) {
        const float *row = logits + (size_t)i * (size_t)classes;
        int label = labels[i], best = 0;
        bool valid = label >= 0 && label < classes;
        for (int k = 1; k < classes; k++)
            if (row[k] > row[best])
                best = k;
        double sum = 0;
        for (int k = 0; k < classes; k++)
            sum += exp((double)row[k] - row[best]);
        *correct += valid && best == label;
        if (valid)
            loss += scale / rows * (log(sum) - ((double)row[label] - row[best]));
        for (int k = 0; dlogits && k < classes; k++)
            dlogits[(size_t)i * (size_t)classes + (size_t)k] =
                valid ? scale / rows * (exp((double)row[k] - row[best]) / sum - (k == label)) : 0;
    }
    return loss;
}
