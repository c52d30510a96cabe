/* Sampled training of the theory's setting in double precision, written from its definition in include/offdiag/theory.h
 * and from where cl/theory.cl says that its random numbers come from. */
#ifndef REFERENCE_THEORY_REF_H
#define REFERENCE_THEORY_REF_H

#include <stdbool.h>
#include <stdint.h>

#include "offdiag/theory.h"

enum { THEORY_REF_DIMENSION = 32 };

/* Neurons in the coordinates that training keeps (features first), and the head. */
typedef struct theory_ref_state {
    double w[OD_THEORY_NEURONS][THEORY_REF_DIMENSION]; /* (m, d), or projected (m, k + m) */
    double head[OD_THEORY_NEURONS][OD_THEORY_NEURONS]; /* (m, m) */
} theory_ref_state;

/* One step of `seed`; the loss of its batch. False: no memory. */
bool theory_ref_step(const od_theory_config *config, bool projected, uint64_t seed, uint32_t step,
                     theory_ref_state *state, double *loss);

#endif
