/* Batch normalisation over x (groups, rows, c), in chunks of rows (columns.clh).
 *
 * Statistics: each chunk finds its mean and its M2, the sum of squares about that mean, in two passes over rows that
 * stay in cache; finish_stats adds chunks by M2 = sum M2_i + n_i (mean_i - mean)^2. Means are kept relative to the
 * group's first row, so that a large common offset costs no digits. Convolutions give such parts of their output too.
 *
 * saved (groups, 4, c): mean, reciprocal standard deviation, and the affine map slope, shift that they make with gamma
 * and beta: the normalised x is x * slope + shift, here and wherever a convolution makes it as it reads. */
#include "columns.clh"

#define RELU     1u
#define RESIDUAL 2u
#define AFFINE   4u
#define Y        8u  /* backward: the ReLU let through what is positive in y, else where x * slope + shift is */
#define BN_INPUT 16u /* the residual is made from a convolution's output by slope and shift */
#define CUT      32u /* and has its own ReLU */

static inline vec reciprocal_std(vec variance, float eps) {
    return 1.0f / sqrt(variance + eps);
}

INLINE void chunk_stats(__global float *partial, const __global float *x, const __global float *first_row,
                        uint rows, uint c, const uint nv, const uint lanes, __local vec *scratch) {
    vec pivot[WIDE], mean[WIDE], m2[WIDE];
    for (uint k = 0; k < nv; k++) {
        pivot[k] = load(first_row + k * V, lanes);
        mean[k] = m2[k] = ZERO;
    }
    for (uint r = ROW_LANE; r < rows; r += TY)
        for (uint k = 0; k < nv; k++)
            mean[k] += load(x + (ulong)r * c + k * V, lanes) - pivot[k];
    for (uint k = 0; k < nv; k++)
        mean[k] = column_total(mean[k], scratch) / (float)rows;
    for (uint r = ROW_LANE; r < rows; r += TY)
        for (uint k = 0; k < nv; k++) {
            vec d = (load(x + (ulong)r * c + k * V, lanes) - pivot[k]) - mean[k];
            m2[k] += d * d;
        }
    for (uint k = 0; k < nv; k++) {
        vec total = column_total(m2[k], scratch);
        if (ROW_LANE == 0) {
            store(partial + k * V, (vec)((float)rows), lanes);
            store(partial + c + k * V, mean[k], lanes);
            store(partial + 2 * c + k * V, total, lanes);
        }
    }
}

/* partial (groups, chunks, 3, c): rows, their mean relative to the group's first row, and M2. */
COLUMN_KERNEL(stats,
              (partial, partial_offset, x, x_offset, rows, c, chunk_rows, chunks),
              __global float *partial, ulong partial_offset, const __global float *x, ulong x_offset, uint rows, uint c,
              uint chunk_rows, uint chunks) {
    ulong group = here.group[2], chunk = here.group[0];
    uint first = (uint)chunk * chunk_rows, n = min(chunk_rows, rows - first);
    __global float *out = partial + partial_offset + (group * chunks + chunk) * 3 * c;
    const __global float *pivot = x + x_offset + group * rows * c, *in = pivot + (ulong)first * c;
#define CALL(col, nv, lanes) chunk_stats(out + (col), in + (col), pivot + (col), n, c, nv, lanes, scratch)
    FOR_COLUMNS(c, CALL)
#undef CALL
}

/* slope and shift (2, c) from mean and rstd. */
static inline void put_affine(__global float *affine, vec mean, vec rstd, const __global float *gamma,
                       const __global float *beta, uint c, uint flags, uint lanes) {
    vec slope = flags & AFFINE ? rstd * load(gamma, lanes) : rstd;
    vec shift = flags & AFFINE ? load(beta, lanes) : ZERO;
    store(affine, slope, lanes);
    store(affine + c, fma(-mean, slope, shift), lanes);
}

/* The mean and the M2 of `rows` rows from those of their parts (parts, 3, c), whose means are relative to `pivot` if it
 * has one. */
static inline void add_parts(vec *mean, vec *m2, const __global float *part, const __global float *pivot, int has_pivot,
                      uint rows, uint c, uint parts, uint lanes, __local vec *scratch) {
    vec sum = ZERO, lost = ZERO, squares = ZERO, squares_lost = ZERO;
    for (uint i = ROW_LANE; i < parts; i += TY) {
        const __global float *at = part + (ulong)i * 3 * c;
        add_compensated(&sum, &lost, load(at + c, lanes) * load(at, lanes));
    }
    *mean = column_total(sum - lost, scratch) / (float)rows;
    for (uint i = ROW_LANE; i < parts; i += TY) {
        const __global float *at = part + (ulong)i * 3 * c;
        vec d = load(at + c, lanes) - *mean;
        add_compensated(&squares, &squares_lost, load(at + 2 * c, lanes) + d * d * load(at, lanes));
    }
    *m2 = column_total(squares - squares_lost, scratch);
    if (ROW_LANE == 0 && has_pivot)
        *mean += load(pivot, lanes);
}

/* merged (groups, 3, c) from the parts (groups, parts, 3, c): rows, mean, M2. The parts' means are relative to `pivot`,
 * as in finish_stats; merged's are not. */
COLUMN_KERNEL(merge_stats,
              (merged, merged_offset, partial, partial_offset, pivot, pivot_offset, groups, rows, c, parts, has_pivot),
              __global float *merged, ulong merged_offset, const __global float *partial, ulong partial_offset,
              const __global float *pivot, ulong pivot_offset, uint groups, uint rows, uint c, uint parts,
              int has_pivot) {
    uint col = FIRST_COLUMN, lanes = LANES(col, c);
    for (ulong g = 0; g < groups; g++) {
        vec mean, m2;
        add_parts(&mean, &m2, partial + partial_offset + g * parts * 3 * c + col,
                  pivot + pivot_offset + g * rows * c + col, has_pivot, rows, c, parts, lanes, scratch);
        if (ROW_LANE == 0) {
            __global float *out = merged + merged_offset + g * 3 * c + col;
            store(out, (vec)((float)rows), lanes);
            store(out + c, mean, lanes);
            store(out + 2 * c, m2, lanes);
        }
    }
}

/* saved (groups, 4, c) from the parts (groups, parts, 3, c), whose means are relative to `pivot` (row 0 of each group;
 * NULL: to 0); the running statistics take the groups in order. */
COLUMN_KERNEL(finish_stats,
              (saved, saved_offset, running_mean, running_mean_offset, running_var, running_var_offset, partial,
               partial_offset, pivot, pivot_offset, gamma, gamma_offset, beta, beta_offset, groups, rows, c, parts,
               eps, momentum, has_pivot, update_mean, update_var, flags),
              __global float *saved, ulong saved_offset, __global float *running_mean, ulong running_mean_offset,
              __global float *running_var, ulong running_var_offset, const __global float *partial,
              ulong partial_offset, const __global float *pivot, ulong pivot_offset, const __global float *gamma,
              ulong gamma_offset, const __global float *beta, ulong beta_offset, uint groups, uint rows, uint c,
              uint parts, float eps, float momentum, int has_pivot, int update_mean, int update_var, uint flags) {
    uint col = FIRST_COLUMN, lanes = LANES(col, c);
    for (ulong g = 0; g < groups; g++) {
        vec mean, m2;
        add_parts(&mean, &m2, partial + partial_offset + g * parts * 3 * c + col,
                  pivot + pivot_offset + g * rows * c + col, has_pivot, rows, c, parts, lanes, scratch);
        if (ROW_LANE == 0) {
            __global float *out = saved + saved_offset + g * 4 * c + col;
            vec rstd = reciprocal_std(m2 / (float)rows, eps);
            store(out, mean, lanes);
            store(out + c, rstd, lanes);
            put_affine(out + 2 * c, mean, rstd, gamma + gamma_offset + col, beta + beta_offset + col, c, flags, lanes);
            if (update_mean) {
                __global float *running = running_mean + running_mean_offset + col;
                store(running, (1.0f - momentum) * load(running, lanes) + momentum * mean, lanes);
            }
            if (update_var) {
                __global float *running = running_var + running_var_offset + col;
                vec unbiased = m2 / (float)(rows - 1);
                store(running, (1.0f - momentum) * load(running, lanes) + momentum * unbiased, lanes);
            }
        }
    }
}

/* saved (1, 4, c) from running statistics (c). */
COLUMN_KERNEL(running_stats,
              (saved, saved_offset, mean, mean_offset, variance, variance_offset, gamma, gamma_offset, beta,
               beta_offset, c, eps, flags),
              __global float *saved, ulong saved_offset, const __global float *mean, ulong mean_offset,
              const __global float *variance, ulong variance_offset, const __global float *gamma, ulong gamma_offset,
              const __global float *beta, ulong beta_offset, uint c, float eps, uint flags) {
    uint col = FIRST_COLUMN, lanes = LANES(col, c);
    if (ROW_LANE == 0) {
        vec m = load(mean + mean_offset + col, lanes);
        vec rstd = reciprocal_std(load(variance + variance_offset + col, lanes), eps);
        __global float *out = saved + saved_offset + col;
        store(out, m, lanes);
        store(out + c, rstd, lanes);
        put_affine(out + 2 * c, m, rstd, gamma + gamma_offset + col, beta + beta_offset + col, c, flags, lanes);
    }
}

INLINE void chunk_apply(__global float *y, const __global float *x, const __global float *affine,
                        const __global float *residual, const __global float *residual_affine, uint rows, uint c,
                        uint flags, const uint nv, const uint lanes) {
    vec slope[WIDE], shift[WIDE], residual_slope[WIDE], residual_shift[WIDE];
    for (uint k = 0; k < nv; k++) {
        slope[k] = load(affine + k * V, lanes);
        shift[k] = load(affine + c + k * V, lanes);
        if (flags & BN_INPUT) {
            residual_slope[k] = load(residual_affine + k * V, lanes);
            residual_shift[k] = load(residual_affine + c + k * V, lanes);
        }
    }
    for (uint r = ROW_LANE; r < rows; r += TY)
        for (uint k = 0; k < nv; k++) {
            ulong at = (ulong)r * c + k * V;
            vec v = fma(load(x + at, lanes), slope[k], shift[k]);
            if (flags & RESIDUAL) {
                vec other = load(residual + at, lanes);
                if (flags & BN_INPUT)
                    other = fma(other, residual_slope[k], residual_shift[k]);
                v += flags & CUT ? relu(other) : other;
            }
            if (flags & RELU)
                v = relu(v);
            store(y + at, v, lanes);
        }
}

/* y (groups, rows, c) = act(x * slope + shift + residual); the maps (2, c) of group g are g * stride further on. y may
 * be x or residual. */
COLUMN_KERNEL(apply,
              (y, y_offset, x, x_offset, affine, affine_offset, residual, residual_offset, residual_affine,
               residual_affine_offset, stride, rows, c, chunk_rows, flags),
              __global float *y, ulong y_offset, const __global float *x, ulong x_offset, const __global float *affine,
              ulong affine_offset, const __global float *residual, ulong residual_offset,
              const __global float *residual_affine, ulong residual_affine_offset, uint stride, ulong rows, uint c,
              uint chunk_rows, uint flags) {
    ulong first = (ulong)here.group[0] * chunk_rows, at = (here.group[2] * rows + first) * c;
    uint n = (uint)min((ulong)chunk_rows, rows - first);
    affine_offset += here.group[2] * stride;
    residual_affine_offset += here.group[2] * stride;
#define CALL(col, nv, lanes)                                                                                           \
    chunk_apply(y + y_offset + at + (col), x + x_offset + at + (col), affine + affine_offset + (col),                  \
                residual + residual_offset + at + (col), residual_affine + residual_affine_offset + (col), n, c,       \
                flags, nv, lanes)
    FOR_COLUMNS(c, CALL)
#undef CALL
}

/* The gradient behind the ReLU. */
static inline vec masked(const __global float *dy, const __global float *y, vec x, vec slope, vec shift, ulong at,
                  uint flags, const uint lanes) {
    vec g = load(dy + at, lanes);
    if (flags & RELU)
        g = keep(g, (flags & Y ? load(y + at, lanes) : fma(x, slope, shift)) > ZERO);
    return g;
}

INLINE void chunk_grads(__global float *partial, const __global float *dy, const __global float *y,
                        const __global float *x, const __global float *saved, uint rows, uint c, uint flags,
                        const uint nv, const uint lanes, __local vec *scratch) {
    vec mean[WIDE], slope[WIDE], shift[WIDE], sum[WIDE], product[WIDE];
    for (uint k = 0; k < nv; k++) {
        mean[k] = load(saved + k * V, lanes);
        slope[k] = load(saved + 2 * c + k * V, lanes);
        shift[k] = load(saved + 3 * c + k * V, lanes);
        sum[k] = product[k] = ZERO;
    }
    for (uint r = ROW_LANE; r < rows; r += TY)
        for (uint k = 0; k < nv; k++) {
            ulong at = (ulong)r * c + k * V;
            vec in = load(x + at, lanes), g = masked(dy, y, in, slope[k], shift[k], at, flags, lanes);
            sum[k] += g;
            product[k] += g * (in - mean[k]);
        }
    for (uint k = 0; k < nv; k++) {
        vec total = column_total(sum[k], scratch);
        vec total_product = column_total(product[k], scratch) * load(saved + c + k * V, lanes);
        if (ROW_LANE == 0) {
            store(partial + k * V, total, lanes);
            store(partial + c + k * V, total_product, lanes);
        }
    }
}

/* partial (groups, chunks, 2, c): sums of g and of g (x - mean) rstd. */
COLUMN_KERNEL(grads,
              (partial, partial_offset, dy, dy_offset, y, y_offset, x, x_offset, saved, saved_offset, rows, c,
               chunk_rows, chunks, flags),
              __global float *partial, ulong partial_offset, const __global float *dy, ulong dy_offset,
              const __global float *y, ulong y_offset, const __global float *x, ulong x_offset,
              const __global float *saved, ulong saved_offset, uint rows, uint c, uint chunk_rows, uint chunks,
              uint flags) {
    ulong group = here.group[2], chunk = here.group[0], first = chunk * chunk_rows;
    ulong at = (group * rows + first) * c;
    uint n = min(chunk_rows, rows - (uint)first);
    __global float *out = partial + partial_offset + (group * chunks + chunk) * 2 * c;
    saved_offset += group * 4 * c;
#define CALL(col, nv, lanes)                                                                                           \
    chunk_grads(out + (col), dy + dy_offset + at + (col), y + y_offset + at + (col), x + x_offset + at + (col),        \
                saved + saved_offset + (col), n, c, flags, nv, lanes, scratch)
    FOR_COLUMNS(c, CALL)
#undef CALL
}

static inline void put_gradient(__global float *out, vec v, int accumulate, uint lanes) {
    store(out, accumulate ? load(out, lanes) + v : v, lanes);
}

/* sums (groups, 2, c) over the chunks; dbeta and dgamma (c) over the groups too. */
COLUMN_KERNEL(finish_grads,
              (sums, sums_offset, dgamma, dgamma_offset, dbeta, dbeta_offset, partial, partial_offset, groups, c,
               chunks, want_dgamma, want_dbeta, accumulate),
              __global float *sums, ulong sums_offset, __global float *dgamma, ulong dgamma_offset,
              __global float *dbeta, ulong dbeta_offset, const __global float *partial, ulong partial_offset,
              uint groups, uint c, uint chunks, int want_dgamma, int want_dbeta, int accumulate) {
    uint col = FIRST_COLUMN, lanes = LANES(col, c);
    vec all_sum = ZERO, all_product = ZERO;
    for (ulong g = 0; g < groups; g++) {
        const __global float *part = partial + partial_offset + g * chunks * 2 * c + col;
        vec sum = ZERO, lost = ZERO, product = ZERO, product_lost = ZERO;
        for (uint i = ROW_LANE; i < chunks; i += TY) {
            add_compensated(&sum, &lost, load(part + (ulong)i * 2 * c, lanes));
            add_compensated(&product, &product_lost, load(part + ((ulong)i * 2 + 1) * c, lanes));
        }
        sum = column_total(sum - lost, scratch);
        product = column_total(product - product_lost, scratch);
        all_sum += sum;
        all_product += product;
        if (ROW_LANE == 0) {
            store(sums + sums_offset + g * 2 * c + col, sum, lanes);
            store(sums + sums_offset + (g * 2 + 1) * c + col, product, lanes);
        }
    }
    if (ROW_LANE == 0 && want_dgamma)
        put_gradient(dgamma + dgamma_offset + col, all_product, accumulate, lanes);
    if (ROW_LANE == 0 && want_dbeta)
        put_gradient(dbeta + dbeta_offset + col, all_sum, accumulate, lanes);
}

INLINE void chunk_dx(__global float *dx, __global float *d_residual, const __global float *dy,
                     const __global float *y, const __global float *x, const __global float *saved,
                     const __global float *sums, uint rows, float inverse_rows, uint c, uint flags,
                     const uint nv, const uint lanes) {
    vec mean[WIDE], slope[WIDE], shift[WIDE], mean_g[WIDE], tilt[WIDE];
    for (uint k = 0; k < nv; k++) {
        mean[k] = load(saved + k * V, lanes);
        mean_g[k] = load(sums + k * V, lanes) * inverse_rows;
        tilt[k] = load(sums + c + k * V, lanes) * inverse_rows * load(saved + c + k * V, lanes);
        slope[k] = load(saved + 2 * c + k * V, lanes);
        shift[k] = load(saved + 3 * c + k * V, lanes);
    }
    for (uint r = ROW_LANE; r < rows; r += TY)
        for (uint k = 0; k < nv; k++) {
            ulong at = (ulong)r * c + k * V;
            vec in = load(x + at, lanes), g = masked(dy, y, in, slope[k], shift[k], at, flags, lanes);
            vec v = slope[k] * (g - mean_g[k] - (in - mean[k]) * tilt[k]);
            if (flags & RESIDUAL)
                store(d_residual + at, g, lanes);
            store(dx + at, v, lanes);
        }
}

/* dx = gamma rstd (g - mean g - xhat mean(g xhat)), d_residual = g; the means over all_rows, which may be more than are
 * here. dx may be dy or x, d_residual may be dy: a place is
 * read before it is written. */
COLUMN_KERNEL(input_grads,
              (dx, dx_offset, d_residual, d_residual_offset, dy, dy_offset, y, y_offset, x, x_offset, saved,
               saved_offset, sums, sums_offset, rows, all_rows, c, chunk_rows, flags),
              __global float *dx, ulong dx_offset, __global float *d_residual, ulong d_residual_offset,
              const __global float *dy, ulong dy_offset, const __global float *y, ulong y_offset,
              const __global float *x, ulong x_offset, const __global float *saved, ulong saved_offset,
              const __global float *sums, ulong sums_offset, uint rows, uint all_rows, uint c, uint chunk_rows,
              uint flags) {
    ulong group = here.group[2], first = (ulong)here.group[0] * chunk_rows, at = (group * rows + first) * c;
    uint n = min(chunk_rows, rows - (uint)first);
    saved_offset += group * 4 * c;
    sums_offset += group * 2 * c;
#define CALL(col, nv, lanes)                                                                                           \
    chunk_dx(dx + dx_offset + at + (col), d_residual + d_residual_offset + at + (col), dy + dy_offset + at + (col),    \
             y + y_offset + at + (col), x + x_offset + at + (col), saved + saved_offset + (col),                       \
             sums + sums_offset + (col), n, 1.0f / (float)all_rows, c, flags, nv, lanes)
    FOR_COLUMNS(c, CALL)
#undef CALL
}
