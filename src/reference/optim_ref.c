#include "reference/optim_ref.h"

#include <math.h>

void optim_ref_sgd(double *p, double *m, const float *g, size_t n, double lr, double mu, double weight_decay) {
    for (size_t i = 0; i < n; i++) {
        m[i] = mu * m[i] + g[i] + weight_decay * p[i];
        p[i] -= lr * m[i];
    }
}

void optim_ref_adam(double *p, double *m, double *v, const float *g, size_t n, double lr, const double betas[2],
                    double weight_decay, bool decoupled, int step) {
    for (size_t i = 0; i < n; i++) {
        double gradient = g[i];
        if (decoupled)
            p[i] -= lr * weight_decay * p[i];
        else
            gradient += weight_decay * p[i];
        m[i] = betas[0] * m[i] + (1 - betas[0]) * gradient;
        v[i] = betas[1] * v[i] + (1 - betas[1]) * gradient * gradient;
        double mean = m[i] / (1 - pow(betas[0], step)), square = v[i] / (1 - pow(betas[1], step));
        p[i] -= lr * mean / (sqrt(square) + 1e-8);
    }
}

void optim_ref_lars(double *p, double *m, const float *g, size_t n, double lr, double mu, double weight_decay,
                    double eta, bool adapt, bool decay) {
    double p_square = 0, g_square = 0, factor = 1, wd = decay ? weight_decay : 0;
    for (size_t i = 0; i < n; i++) {
        p_square += p[i] * p[i];
        g_square += (double)g[i] * g[i];
    }
    if (adapt && p_square > 0 && g_square > 0)
        factor = fmin(eta * sqrt(p_square) / (sqrt(g_square) + wd * sqrt(p_square) + 1e-8) / lr, 1);
    else if (adapt)
        wd = 0;
    for (size_t i = 0; i < n; i++) {
        m[i] = mu * m[i] + factor * (g[i] + wd * p[i]);
        p[i] -= lr * m[i];
    }
}

void optim_ref_average(double *target, const double *p, size_t n, double tau) {
    for (size_t i = 0; i < n; i++)
        target[i] = tau * target[i] + (1 - tau) * p[i];
}
