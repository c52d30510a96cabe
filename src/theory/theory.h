/* Within the theory layer: what the two levels share. */
#ifndef THEORY_THEORY_H
#define THEORY_THEORY_H

#include "offdiag/theory.h"

/* Philox: the high word of the streams of starts, and the last counter word of cl/theory.cl. */
enum { THEORY_RNG = 5, THEORY_DEGREE = 9 };

/* Steps that are observed: each below `rows`, then every 2nd, every 4th, ...: `rows` for each doubling; and the last.
 */
static inline uint64_t theory_stride(uint64_t step, int rows) {
    uint64_t stride = 1;
    for (uint64_t doublings = step / (uint64_t)rows; doublings > 1; doublings /= 2)
        stride *= 2;
    return stride;
}
uint64_t theory_next_row(uint64_t step, int rows, uint64_t last);
od_status theory_rows(const od_theory_config *c, double **steps, size_t *rows);

/* One row of a path. */
void theory_observe(const od_theory_config *c, const od_theory_state *s, double loss, double *row);

/* How many feature patches view 1 has: probabilities[n] for n = 0 .. P0, hypergeometric. */
void theory_patch_counts(const od_theory_config *c, double *probabilities);

/* Lower-triangular rows with the same Gram matrix as `vectors` (count, n); out (count, stride). */
void theory_triangular(double *out, size_t stride, const double *vectors, size_t count, size_t n);

/* The path of one seed by expected gradients: path (rows, columns). */
void theory_expected(const od_theory_config *c, const od_theory_state *start, const double *steps, size_t rows,
                     double *path);

/* All seeds on a device: paths (seeds, rows, columns). */
od_status theory_sampled_on(od_device *device, const od_theory_config *c, const od_theory_state *starts,
                            const double *steps, size_t rows, double *paths, double *seconds);
/* The same on the device of the setting; and its name. */
od_status theory_sampled(const od_theory_config *c, const od_theory_state *starts, const double *steps, size_t rows,
                         double *paths, double *seconds, char name[256]);

#endif
