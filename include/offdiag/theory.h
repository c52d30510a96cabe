/* The paper's setting in the small: features of unlike strength, as many neurons, batch-normalised outputs, a
 * prediction head that starts as the identity. Two levels of the same training: exact expected gradients in double
 * precision on the host, and sampled data on a device, many seeds at once.
 *
 * A sample: one feature l of k, a sign z = +-alpha_l, P patches of dimension d of which P0 equal z v_l and the others
 * are noise N(0, sigma^2 I). A random half of the patches goes to view 1, the rest to view 2. Neuron j of m computes
 * f_j(X) = sum_p <w_j, X_p>^q; the online output is F_j = sum_r E_jr f_r(X1), the target G_j = f_j(X2), and the loss
 * sum_j mean (BN F_j - stop-gradient BN G_j)^2. */
#ifndef OFFDIAG_THEORY_H
#define OFFDIAG_THEORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "offdiag/device.h"
#include "offdiag/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { OD_THEORY_NEURONS = 8, OD_THEORY_FEATURES = 8, OD_THEORY_SEEDS = 1000000 };

/* What of E is trained, and whether it starts as the identity or (random) as N(0, 1/m) with all of it trained. */
typedef enum od_theory_head { OD_THEORY_NONE, OD_THEORY_OFFDIAG, OD_THEORY_FULL, OD_THEORY_RANDOM } od_theory_head;
typedef enum od_theory_level { OD_THEORY_EXPECTED, OD_THEORY_SAMPLED } od_theory_level;
typedef enum od_theory_integrator { OD_THEORY_STEPS, OD_THEORY_FLOW } od_theory_integrator;

/* The start of W: N(0, 1/d) in every coordinate; or, controlled, the same except |<w_j, v_l>| = (1 + spread u)/sqrt(d)
 * with u uniform in [-1, 1] and a random sign. */
typedef enum od_theory_start_kind { OD_THEORY_CONTROLLED, OD_THEORY_GAUSSIAN } od_theory_start_kind;

/* How sampled training draws noise: only the components that decide how the Gram matrix of the neurons moves (the same
 * distribution of all that is reported, see cl/theory.cl), or every component. */
typedef enum od_theory_draw { OD_THEORY_PROJECTED, OD_THEORY_ALL } od_theory_draw;

typedef struct od_theory_config {
    od_theory_head head;
    od_theory_level level;
    od_theory_integrator integrator;
    od_theory_start_kind start;
    od_theory_draw draw;
    bool no_bn, no_stopgrad;
    bool detach_std;       /* W's gradient takes the standard deviations in 2 - 2 corr as constants */
    bool noise_everywhere; /* noise along the features too */
    bool plain_batch;      /* sampled: without the antithetic copies of each sample */
    double drop_head; /* X > 0: E = I for good at X times the step at which a neuron first learned the strong feature */
    int neurons, features, dimension, patches, feature_patches, degree, batch;
    double strength[OD_THEORY_FEATURES]; /* alpha, the strong one first */
    double noise, spread;
    double eta, eta_head; /* 0: what od_theory_check puts there */
    double head_ratio;    /* eta_head / eta, where eta_head is 0 */
    uint64_t steps;       /* 0: 100,000, sampled 15,000 */
    uint64_t seed;        /* the first */
    int seeds;
    int rows;    /* observations for each doubling of the step: times are known to 1/rows; 0: by level */
    int threads; /* expected level; 0: one for each processor */
    char device[256];
    od_family kernels;
} od_theory_config;

/* The reference setting: expected gradients, off-diagonal head, controlled start, 40 seeds. */
void od_theory_config_default(od_theory_config *config);

/* Fill in what was left to be chosen; OD_ERR_USAGE where values don't fit each other or only the other level knows. */
od_status od_theory_check(od_theory_config *config);

/* The neurons and the head. Gradient descent never leaves the span of the features and the first w_j, so a neuron is
 * its coordinates along the features and `neurons` more. */
typedef struct od_theory_state {
    double w[OD_THEORY_NEURONS][OD_THEORY_FEATURES + OD_THEORY_NEURONS]; /* (m, k + m): features first */
    double head[OD_THEORY_NEURONS][OD_THEORY_NEURONS];                   /* (m, m): E */
} od_theory_state;

/* The start of a seed, the same for both levels. config must have passed od_theory_check, here and below. */
od_status od_theory_start(const od_theory_config *config, uint64_t seed, od_theory_state *start);

/* The expected loss, and its gradient (with the target held fixed unless no_stopgrad); descent may be NULL, and holds
 * MINUS the gradient, with zeros where the head isn't trained. The degree must be odd. */
double od_theory_loss(const od_theory_config *config, const od_theory_state *state, od_theory_state *descent);

/* ---- runs ---------------------------------------------------------------------------------------------------------
 */

typedef enum od_theory_outcome {
    OD_THEORY_BOTH,      /* each feature is learned by some neuron: |<w_j, v_l>| > 0.9 |w_j| */
    OD_THEORY_COLLAPSE,  /* every neuron learned the strong feature */
    OD_THEORY_MIXED,     /* neither, with all neurons (to 0.9 of their length) among the features */
    OD_THEORY_UNLEARNED, /* some neuron is mostly noise */
    OD_THEORY_DIVERGED,
    OD_THEORY_OUTCOMES
} od_theory_outcome;
extern const char *const od_theory_outcome_names[];
extern const char *const od_theory_head_names[];

typedef struct od_theory_result {
    uint64_t seed;
    od_theory_outcome outcome;
    double loss;
    double cosine[OD_THEORY_NEURONS][OD_THEORY_FEATURES]; /* <w_j, v_l> / |w_j| at the end */
    double head[OD_THEORY_NEURONS][OD_THEORY_NEURONS];    /* E at the end */
    double peak[OD_THEORY_NEURONS][OD_THEORY_NEURONS];    /* the largest |E_jr - I_jr| ever */
    int first, other;          /* neurons: a, the first to learn the strong feature, and b; -1 where none did */
    double phase[4];           /* steps at which phases I to IV end (od_theory_analyse); NaN where one never does */
    double half_peak, at_peak; /* steps at which |E_ba| passes half its peak, and is at it */
    bool rise_and_fall;
} od_theory_result;

/* Observations of one seed: `rows` rows of `columns` numbers: loss, <w_j, v_l> (m, k), |w_j| (m), E (m, m). */
typedef struct od_theory_run {
    od_theory_config config; /* with everything resolved */
    size_t rows, columns;
    double *steps;             /* (rows) */
    double *paths;             /* (seeds, rows, columns), or NULL unless kept */
    od_theory_result *results; /* (seeds) */
    double seconds;            /* of training, without start-up and the building of kernels */
    char device[256];          /* its name; "" for the expected level */
} od_theory_run;

/* Train all seeds. starts (seeds) may be NULL: od_theory_start's. Free with od_theory_run_free, also after a failure.
 */
od_status od_theory_train(const od_theory_config *config, const od_theory_state *starts, bool keep_paths,
                          od_theory_run *run);
void od_theory_run_free(od_theory_run *run);

/* What happened on a path. Phase I ends when neuron a learned the strong feature; II when |E_ba| passes 90 % of its
 * peak; III when neuron b learned the next feature; IV when |E_ba| falls under 20 % of its peak. */
void od_theory_analyse(const od_theory_config *config, const double *steps, const double *path, size_t rows,
                       od_theory_result *result);

static inline size_t od_theory_columns(const od_theory_config *c) {
    return 1 + (size_t)c->neurons * (size_t)(c->features + 1 + c->neurons);
}

/* Wilson's 95 % interval of the share `count` of `n`. */
void od_theory_interval(int count, int n, double *low, double *high);

#ifdef __cplusplus
}
#endif
#endif
