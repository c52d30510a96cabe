/* The theory's expected loss, written from its definition: online outputs, target, and the two
 * standard deviations each from a state of their own, so that differences of any of them can be taken. Moments of the
 * noise come from the binomial expansion of one normal number by another. */
#ifndef TEST_THEORY_REF_H
#define TEST_THEORY_REF_H

#include <math.h>

#include "offdiag/theory.h"

static inline double ref_normal_moment(int n) {
    double product = n % 2 == 0;
    for (int i = n - 1; i > 1; i -= 2)
        product *= i;
    return product;
}

static inline double ref_choose(int n, int k) {
    return round(exp(lgamma(n + 1.) - lgamma(k + 1.) - lgamma(n - k + 1.)));
}

/* E x^q y^q of normal x, y with variances a, b and covariance g: x = sqrt(a) u, y = g / sqrt(a) u + rest v. */
static inline double ref_noise_moment(int q, double a, double b, double g) {
    double sum = 0, slope = g / sqrt(a), rest = sqrt(fmax(b - g * g / a, 0));
    for (int i = 0; i <= q; i++)
        sum += ref_choose(q, i) * pow(sqrt(a), q) * pow(slope, i) * pow(rest, q - i) * ref_normal_moment(q + i) *
               ref_normal_moment(q - i);
    return sum;
}

/* E f_i f_j of neuron i of s and neuron j of t, in one view or in two. */
static inline double ref_product(const od_theory_config *c, const od_theory_state *s, int i, const od_theory_state *t,
                                 int j, bool one_view) {
    double sum = 0, a = 0, b = 0, g = 0, squares = 0, products = 0, P = c->patches, P0 = c->feature_patches, total = 0;
    for (int n = 0; n <= c->feature_patches; n++) { /* feature patches in view 1 */
        if (n > c->patches / 2 || P / 2 - n > P - P0)
            continue;
        double chance =
            ref_choose(c->feature_patches, n) * ref_choose(c->patches - c->feature_patches, c->patches / 2 - n);
        total += chance;
        squares += chance * n * n;
        products += chance * n * (P0 - n);
    }
    for (int l = 0; l < c->features; l++)
        sum += pow(s->w[i][l] * t->w[j][l], c->degree) * pow(c->strength[l], 2 * c->degree) / c->features;
    if (!one_view)
        return products / total * sum;
    for (int l = c->noise_everywhere ? 0 : c->features; l < c->features + c->neurons; l++) {
        a += s->w[i][l] * s->w[i][l];
        b += t->w[j][l] * t->w[j][l];
        g += s->w[i][l] * t->w[j][l];
    }
    double v = c->noise * c->noise;
    return squares / total * sum + (P - P0) / 2 * ref_noise_moment(c->degree, v * a, v * b, v * g);
}

static inline double ref_loss(const od_theory_config *c, const od_theory_state *online, const od_theory_state *target,
                              const od_theory_state *scale_online, const od_theory_state *scale_target) {
    double loss = 0;
    for (int j = 0; j < c->neurons; j++) {
        double N = 0, D = 0, D0 = 0, T = ref_product(c, target, j, target, j, true),
               T0 = ref_product(c, scale_target, j, scale_target, j, true);
        for (int r = 0; r < c->neurons; r++) {
            N += online->head[j][r] * ref_product(c, online, r, target, j, false);
            for (int q = 0; q < c->neurons; q++) {
                D += online->head[j][r] * online->head[j][q] * ref_product(c, online, r, online, q, true);
                D0 += scale_online->head[j][r] * scale_online->head[j][q] *
                      ref_product(c, scale_online, r, scale_online, q, true);
            }
        }
        loss += c->no_bn ? D - 2 * N + T : 2 - 2 * N / sqrt(D0 * T0);
    }
    return loss;
}

#endif
