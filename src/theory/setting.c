/* The setting: defaults, what may be combined, and where training starts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "theory/theory.h"

const char *const od_theory_head_names[] = {"none", "offdiag", "full", "random", NULL};
const char *const od_theory_outcome_names[] = {"both", "collapse_v1", "mixed", "unlearned", "diverged", NULL};

void od_theory_config_default(od_theory_config *config) {
    *config = (od_theory_config){
        .head = OD_THEORY_OFFDIAG,
        .neurons = 2,
        .features = 2,
        .dimension = 64,
        .patches = 16,
        .feature_patches = 6,
        .degree = 3,
        .batch = 32,
        .strength = {2, 1.25},
        .noise = 1,
        .spread = 0.25,
        .head_ratio = 0.3,
        .seeds = 40,
    };
}

static od_status check_expected(const od_theory_config *c) {
    if (c->degree % 2 == 0)
        return od_fail(
            OD_ERR_USAGE,
            "--degree %d: expected gradients have a closed form for odd degrees only; --level sampled takes it",
            c->degree);
    if (c->plain_batch || c->draw != OD_THEORY_PROJECTED)
        return od_fail(OD_ERR_USAGE, "--%s: expected gradients have no batch; it goes with --level sampled",
                       c->plain_batch ? "plain-batch" : "draw");
    if (c->integrator == OD_THEORY_FLOW && c->drop_head > 0)
        return od_fail(OD_ERR_USAGE, "--drop-head: with --integrator steps only");
    return OD_OK;
}

static od_status check_sampled(const od_theory_config *c) {
    if (c->integrator != OD_THEORY_STEPS || c->drop_head > 0)
        return od_fail(OD_ERR_USAGE, "--%s: sampled training takes plain steps; it goes with --level expected",
                       c->drop_head > 0 ? "drop-head" : "integrator flow");
    if (c->steps >= UINT32_MAX)
        return od_fail(OD_ERR_USAGE, "--steps %llu: sampled training takes fewer than 2^32",
                       (unsigned long long)c->steps);
    return OD_OK;
}

od_status od_theory_check(od_theory_config *c) {
    if (c->neurons < 1 || c->neurons > OD_THEORY_NEURONS || c->features < 1 || c->features > OD_THEORY_FEATURES)
        return od_fail(OD_ERR_USAGE, "%d neurons and %d features: 1 to %d and 1 to %d", c->neurons, c->features,
                       OD_THEORY_NEURONS, OD_THEORY_FEATURES);
    for (int l = 0; l < c->features; l++)
        if (!(c->strength[l] > 0) || (l > 0 && c->strength[l] > c->strength[l - 1]))
            return od_fail(OD_ERR_USAGE, "--strengths: positive numbers, the strongest first; number %d is %g", l + 1,
                           c->strength[l]);
    if (c->dimension <= c->features)
        return od_fail(OD_ERR_USAGE, "--dimension %d: more than the %d features, so that there is room for noise",
                       c->dimension, c->features);
    if (c->patches < 2 || c->patches % 2 != 0)
        return od_fail(OD_ERR_USAGE, "--patches %d: an even number, half for each view", c->patches);
    if (c->feature_patches < 1 || c->feature_patches > c->patches)
        return od_fail(OD_ERR_USAGE, "--feature-patches %d: from 1 to the %d patches", c->feature_patches, c->patches);
    if (c->degree < 1 || c->degree > THEORY_DEGREE)
        return od_fail(OD_ERR_USAGE, "--degree %d: from 1 to %d", c->degree, THEORY_DEGREE);
    if (c->seeds < 1 || c->seeds > OD_THEORY_SEEDS)
        return od_fail(OD_ERR_USAGE, "--seeds %d: from 1 to %d", c->seeds, OD_THEORY_SEEDS);
    if (c->eta == 0)
        c->eta = c->no_bn ? 5e-4 : 0.05;
    if (c->eta_head == 0)
        c->eta_head = c->head_ratio * c->eta;
    if (c->steps == 0)
        c->steps = c->level == OD_THEORY_SAMPLED ? 15000 : 100000;
    if (c->rows == 0)
        c->rows = c->level == OD_THEORY_SAMPLED ? 128 : c->integrator == OD_THEORY_FLOW ? 64 : 512;
    return c->level == OD_THEORY_SAMPLED ? check_sampled(c) : check_expected(c);
}

/* Gram and Schmidt, twice over, on the rows. */
void theory_triangular(double *out, size_t stride, const double *vectors, size_t count, size_t n) {
    double *basis = calloc(count * n + 1, sizeof *basis);
    if (!basis)
        return;
    for (size_t r = 0; r < count; r++) {
        double *q = basis + r * n, length = 0;
        memcpy(q, vectors + r * n, n * sizeof *q);
        memset(out + r * stride, 0, count * sizeof *out);
        for (size_t s = 0; s < 2 * r; s++) {
            const double *e = basis + (s % r) * n;
            double along = 0;
            for (size_t i = 0; i < n; i++)
                along += q[i] * e[i];
            for (size_t i = 0; i < n; i++)
                q[i] -= along * e[i];
            out[r * stride + s % r] += along;
        }
        for (size_t i = 0; i < n; i++)
            length += q[i] * q[i];
        length = sqrt(length);
        out[r * stride + r] = length;
        for (size_t i = 0; i < n; i++) /* more vectors than dimensions leave nothing but rounding */
            q[i] = length > 1e-12 ? q[i] / length : 0;
    }
    free(basis);
}

enum { DRAW_W, DRAW_SIZE, DRAW_SIGN, DRAW_HEAD }; /* the parts of a start's stream */

static uint64_t stream(int part) {
    return (uint64_t)THEORY_RNG << 32 | (uint64_t)part;
}

od_status od_theory_start(const od_theory_config *c, uint64_t seed, od_theory_state *start) {
    size_t m = (size_t)c->neurons, k = (size_t)c->features, d = (size_t)c->dimension, rest = d - k;
    double deviation = 1 / sqrt((double)d);
    float sizes[OD_THEORY_NEURONS * OD_THEORY_FEATURES], signs[OD_THEORY_NEURONS * OD_THEORY_FEATURES];
    float head[OD_THEORY_NEURONS * OD_THEORY_NEURONS];
    float *drawn = malloc(m * d * sizeof *drawn);       /* (m, d) */
    double *others = malloc(m * rest * sizeof *others); /* (m, d - k) */
    if (!drawn || !others) {
        free(drawn);
        free(others);
        return od_fail(OD_ERR_MEMORY, "no memory for %zu neurons of dimension %zu", m, d);
    }
    od_rng_fill_normal(drawn, m * d, (float)deviation, seed, stream(DRAW_W));
    od_rng_fill_uniform(sizes, m * k, -1, 1, seed, stream(DRAW_SIZE));
    od_rng_fill_uniform(signs, m * k, -1, 1, seed, stream(DRAW_SIGN));
    od_rng_fill_normal(head, m * m, (float)sqrt(1 / (double)m), seed, stream(DRAW_HEAD));
    memset(start, 0, sizeof *start);
    for (size_t j = 0; j < m; j++) {
        for (size_t l = 0; l < k; l++)
            start->w[j][l] = c->start == OD_THEORY_GAUSSIAN
                                 ? drawn[j * d + l]
                                 : copysign((1 + c->spread * sizes[j * k + l]) * deviation, signs[j * k + l]);
        for (size_t i = 0; i < rest; i++)
            others[j * rest + i] = drawn[j * d + k + i];
        for (size_t r = 0; r < m; r++)
            start->head[j][r] = c->head == OD_THEORY_RANDOM ? head[j * m + r] : j == r;
    }
    theory_triangular(&start->w[0][k], sizeof start->w[0] / sizeof(double), others, m, rest);
    free(drawn);
    free(others);
    return OD_OK;
}

void theory_patch_counts(const od_theory_config *c, double *probabilities) {
    int half = c->patches / 2, rest = c->patches - c->feature_patches;
    double sum = 0;
    for (int n = 0; n <= c->feature_patches; n++) {
        bool possible = n <= half && half - n <= rest;
        probabilities[n] =
            possible ? exp(lgamma(c->feature_patches + 1.) - lgamma(n + 1.) - lgamma(c->feature_patches - n + 1.) +
                           lgamma(rest + 1.) - lgamma(half - n + 1.) - lgamma(rest - half + n + 1.))
                     : 0;
        sum += probabilities[n];
    }
    for (int n = 0; n <= c->feature_patches; n++)
        probabilities[n] /= sum;
}
