#include "reference/norm_ref.h"

#include <math.h>

static size_t index_of(const od_bn_shape *s, int group, int row, int channel) {
    return ((size_t)group * (size_t)s->rows + (size_t)row) * (size_t)s->c + (size_t)channel;
}

static double activated(const norm_ref_input *in, double normal, size_t at, int channel) {
    double v = normal * (in->gamma ? in->gamma[channel] : 1) + (in->beta ? in->beta[channel] : 0);
    if (in->residual)
        v += in->residual[at];
    return in->relu && v < 0 ? 0 : v;
}

/* Mean, and the sum of squares about it, of one channel. */
static void moments(double *mean, double *m2, const od_bn_shape *s, const float *x, int group, int channel) {
    *mean = *m2 = 0;
    for (int r = 0; r < s->rows; r++)
        *mean += x[index_of(s, group, r, channel)];
    *mean /= s->rows;
    for (int r = 0; r < s->rows; r++) {
        double d = x[index_of(s, group, r, channel)] - *mean;
        *m2 += d * d;
    }
}

void norm_ref_forward(double *y, double *mean, double *rstd, double *running_mean, double *running_var,
                      const od_bn_shape *shape, const norm_ref_input *in, double momentum) {
    for (int g = 0; g < shape->groups; g++)
        for (int k = 0; k < shape->c; k++) {
            double m, m2;
            moments(&m, &m2, shape, in->x, g, k);
            double r = 1 / sqrt(m2 / shape->rows + shape->eps);
            mean[g * shape->c + k] = m;
            rstd[g * shape->c + k] = r;
            if (running_mean)
                running_mean[k] += momentum * (m - running_mean[k]);
            if (running_var)
                running_var[k] += momentum * (m2 / (shape->rows - 1) - running_var[k]);
            for (int i = 0; i < shape->rows; i++) {
                size_t at = index_of(shape, g, i, k);
                y[at] = activated(in, (in->x[at] - m) * r, at, k);
            }
        }
}

void norm_ref_inference(double *y, const od_bn_shape *shape, const norm_ref_input *in, const float *mean,
                        const float *var) {
    size_t count = (size_t)shape->groups * (size_t)shape->rows * (size_t)shape->c;
    for (size_t at = 0; at < count; at++) {
        int k = (int)(at % (size_t)shape->c);
        y[at] = activated(in, ((double)in->x[at] - mean[k]) / sqrt((double)var[k] + shape->eps), at, k);
    }
}

/* dx_i = sum_j g_j gamma d xhat_j / d x_i, with d xhat_j / d x_i = rstd (delta_ij - 1/n - xhat_i xhat_j / n). */
static void channel_backward(double *dx, double *g, double *dgamma, double *dbeta, const od_bn_shape *s,
                             const norm_ref_input *in, int group, int channel) {
    double mean, m2, sum = 0, product = 0;
    moments(&mean, &m2, s, in->x, group, channel);
    double rstd = 1 / sqrt(m2 / s->rows + s->eps);
    for (int j = 0; j < s->rows; j++) {
        size_t at = index_of(s, group, j, channel);
        sum += g[at];
        product += g[at] * (in->x[at] - mean) * rstd;
    }
    for (int i = 0; i < s->rows; i++) {
        size_t at = index_of(s, group, i, channel);
        double normal = (in->x[at] - mean) * rstd;
        dx[at] = rstd * (in->gamma ? in->gamma[channel] : 1) * (g[at] - (sum + normal * product) / s->rows);
    }
    dgamma[channel] += product;
    dbeta[channel] += sum;
}

void norm_ref_backward(double *dx, double *g, double *dgamma, double *dbeta, const od_bn_shape *shape,
                       const norm_ref_input *in, const float *dy, const float *y) {
    size_t count = (size_t)shape->groups * (size_t)shape->rows * (size_t)shape->c;
    for (size_t at = 0; at < count; at++)
        g[at] = !in->relu || y[at] > 0 ? dy[at] : 0;
    for (int group = 0; group < shape->groups; group++)
        for (int k = 0; k < shape->c; k++)
            channel_backward(dx, g, dgamma, dbeta, shape, in, group, k);
}
