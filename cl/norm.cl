/* Batch normalisation over x (groups, rows, c), in chunks of rows (columns.clh).
 *
 * Statistics: each chunk finds its mean and its M2, the sum of squares about that mean, in two passes over rows that
 * stay in cache; finish_stats adds chunks by M2 = sum M2_i + n_i (mean_i - mean)^2. Means are kept relative to the
 * group's first row, so that a large common offset costs no digits. */
#include "columns.clh"

#define RELU     1u
#define RESIDUAL 2u
#define AFFINE   4u
#define VARIANCE 8u /* the second statistic is a variance, not a reciprocal standard deviation */

static inline vec reciprocal_std(vec variance, float eps) {
    return 1.0f / sqrt(variance + eps);
}

static inline void chunk_stats(__global float *partial, const __global float *x, const __global float *first_row,
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
            store(partial + k * V, mean[k], lanes);
            store(partial + c + k * V, total, lanes);
        }
    }
}

/* partial (groups, chunks, 2, c): mean relative to the group's first row, and M2. */
COLUMN_KERNEL stats(__global float *partial, ulong partial_offset, const __global float *x, ulong x_offset, uint rows,
                    uint c, uint chunk_rows, uint chunks) {
    __local vec scratch[TX * TY];
    ulong group = get_group_id(2), chunk = get_group_id(0);
    uint first = (uint)chunk * chunk_rows, n = min(chunk_rows, rows - first);
    __global float *out = partial + partial_offset + (group * chunks + chunk) * 2 * c;
    const __global float *pivot = x + x_offset + group * rows * c, *in = pivot + (ulong)first * c;
#define CALL(col, nv, lanes) chunk_stats(out + (col), in + (col), pivot + (col), n, c, nv, lanes, scratch)
    FOR_COLUMNS(c, CALL)
#undef CALL
}

/* saved (groups, 2, c): mean and reciprocal standard deviation; the running statistics take the groups in order. */
COLUMN_KERNEL finish_stats(__global float *saved, ulong saved_offset, __global float *running_mean,
                           ulong running_mean_offset, __global float *running_var, ulong running_var_offset,
                           const __global float *partial, ulong partial_offset, const __global float *x, ulong x_offset,
                           uint groups, uint rows, uint c, uint chunk_rows, uint chunks, float eps, float momentum,
                           int update_mean, int update_var) {
    __local vec scratch[TX * TY];
    uint col = FIRST_COLUMN, lanes = LANES(col, c);
    for (ulong g = 0; g < groups; g++) {
        const __global float *part = partial + partial_offset + g * chunks * 2 * c + col;
        vec sum = ZERO, lost = ZERO, m2 = ZERO, m2_lost = ZERO;
        for (uint i = ROW_LANE; i < chunks; i += TY)
            add_compensated(&sum, &lost,
                            load(part + (ulong)i * 2 * c, lanes) * (float)min(chunk_rows, rows - i * chunk_rows));
        vec mean = column_total(sum - lost, scratch) / (float)rows;
        for (uint i = ROW_LANE; i < chunks; i += TY) {
            vec d = load(part + (ulong)i * 2 * c, lanes) - mean;
            vec between = d * d * (float)min(chunk_rows, rows - i * chunk_rows);
            add_compensated(&m2, &m2_lost, load(part + ((ulong)i * 2 + 1) * c, lanes) + between);
        }
        m2 = column_total(m2 - m2_lost, scratch);
        if (ROW_LANE == 0) {
            __global float *out = saved + saved_offset + g * 2 * c + col;
            mean += load(x + x_offset + g * rows * c + col, lanes);
            store(out, mean, lanes);
            store(out + c, reciprocal_std(m2 / (float)rows, eps), lanes);
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

static inline void chunk_apply(__global float *y, const __global float *x, const __global float *residual,
                               const __global float *mean_, const __global float *spread, const __global float *gamma,
                               const __global float *beta, uint rows, uint c, float eps, uint flags, const uint nv,
                               const uint lanes) {
    vec mean[WIDE], slope[WIDE], shift[WIDE];
    for (uint k = 0; k < nv; k++) {
        mean[k] = load(mean_ + k * V, lanes);
        slope[k] = load(spread + k * V, lanes);
        if (flags & VARIANCE)
            slope[k] = reciprocal_std(slope[k], eps);
        shift[k] = ZERO;
        if (flags & AFFINE) {
            slope[k] *= load(gamma + k * V, lanes);
            shift[k] = load(beta + k * V, lanes);
        }
    }
    for (uint r = ROW_LANE; r < rows; r += TY)
        for (uint k = 0; k < nv; k++) {
            ulong at = (ulong)r * c + k * V;
            vec v = (load(x + at, lanes) - mean[k]) * slope[k] + shift[k];
            if (flags & RESIDUAL)
                v += load(residual + at, lanes);
            if (flags & RELU)
                v = relu(v);
            store(y + at, v, lanes);
        }
}

/* y (groups, rows, c); the statistics of group g are g * stats_stride further on. y may be x. */
COLUMN_KERNEL apply(__global float *y, ulong y_offset, const __global float *x, ulong x_offset,
                    const __global float *residual, ulong residual_offset, const __global float *mean,
                    ulong mean_offset, const __global float *spread, ulong spread_offset, const __global float *gamma,
                    ulong gamma_offset, const __global float *beta, ulong beta_offset, uint stats_stride, ulong rows,
                    uint c, uint chunk_rows, float eps, uint flags) {
    ulong first = (ulong)get_group_id(0) * chunk_rows, at = (get_group_id(2) * rows + first) * c;
    uint n = (uint)min((ulong)chunk_rows, rows - first);
    mean_offset += get_group_id(2) * stats_stride;
    spread_offset += get_group_id(2) * stats_stride;
#define CALL(col, nv, lanes)                                                                                           \
    chunk_apply(y + y_offset + at + (col), x + x_offset + at + (col), residual + residual_offset + at + (col),         \
                mean + mean_offset + (col), spread + spread_offset + (col), gamma + gamma_offset + (col),              \
                beta + beta_offset + (col), n, c, eps, flags, nv, lanes)
    FOR_COLUMNS(c, CALL)
#undef CALL
}

/* The gradient behind the ReLU. */
static inline vec masked(const __global float *dy, const __global float *y, ulong at, uint flags, const uint lanes) {
    vec g = load(dy + at, lanes);
    return flags & RELU ? keep(g, load(y + at, lanes) > ZERO) : g;
}

static inline void chunk_grads(__global float *partial, const __global float *dy, const __global float *y,
                               const __global float *x, const __global float *saved, uint rows, uint c, uint flags,
                               const uint nv, const uint lanes, __local vec *scratch) {
    vec mean[WIDE], sum[WIDE], product[WIDE];
    for (uint k = 0; k < nv; k++) {
        mean[k] = load(saved + k * V, lanes);
        sum[k] = product[k] = ZERO;
    }
    for (uint r = ROW_LANE; r < rows; r += TY)
        for (uint k = 0; k < nv; k++) {
            ulong at = (ulong)r * c + k * V;
            vec g = masked(dy, y, at, flags, lanes);
            sum[k] += g;
            product[k] += g * (load(x + at, lanes) - mean[k]);
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
COLUMN_KERNEL grads(__global float *partial, ulong partial_offset, const __global float *dy, ulong dy_offset,
                    const __global float *y, ulong y_offset, const __global float *x, ulong x_offset,
                    const __global float *saved, ulong saved_offset, uint rows, uint c, uint chunk_rows, uint chunks,
                    uint flags) {
    __local vec scratch[TX * TY];
    ulong group = get_group_id(2), chunk = get_group_id(0), first = chunk * chunk_rows;
    ulong at = (group * rows + first) * c;
    uint n = min(chunk_rows, rows - (uint)first);
    __global float *out = partial + partial_offset + (group * chunks + chunk) * 2 * c;
    saved_offset += group * 2 * c;
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
COLUMN_KERNEL finish_grads(__global float *sums, ulong sums_offset, __global float *dgamma, ulong dgamma_offset,
                           __global float *dbeta, ulong dbeta_offset, const __global float *partial,
                           ulong partial_offset, uint groups, uint c, uint chunks, int want_dgamma, int want_dbeta,
                           int accumulate) {
    __local vec scratch[TX * TY];
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

static inline void chunk_dx(__global float *dx, __global float *d_residual, const __global float *dy,
                            const __global float *y, const __global float *x, const __global float *saved,
                            const __global float *sums, const __global float *gamma, uint rows, float inverse_rows,
                            uint c, uint flags, const uint nv, const uint lanes) {
    vec mean[WIDE], slope[WIDE], mean_g[WIDE], tilt[WIDE];
    for (uint k = 0; k < nv; k++) {
        vec rstd = load(saved + c + k * V, lanes);
        mean[k] = load(saved + k * V, lanes);
        mean_g[k] = load(sums + k * V, lanes) * inverse_rows;
        tilt[k] = load(sums + c + k * V, lanes) * inverse_rows * rstd;
        slope[k] = flags & AFFINE ? rstd * load(gamma + k * V, lanes) : rstd;
    }
    for (uint r = ROW_LANE; r < rows; r += TY)
        for (uint k = 0; k < nv; k++) {
            ulong at = (ulong)r * c + k * V;
            vec g = masked(dy, y, at, flags, lanes); /* read before d_residual or dx, which may be dy, is written */
            vec v = slope[k] * (g - mean_g[k] - (load(x + at, lanes) - mean[k]) * tilt[k]);
            if (flags & RESIDUAL)
                store(d_residual + at, g, lanes);
            store(dx + at, v, lanes);
        }
}

/* dx = gamma rstd (g - mean g - xhat mean(g xhat)), d_residual = g. */
COLUMN_KERNEL input_grads(__global float *dx, ulong dx_offset, __global float *d_residual, ulong d_residual_offset,
                          const __global float *dy, ulong dy_offset, const __global float *y, ulong y_offset,
                          const __global float *x, ulong x_offset, const __global float *saved, ulong saved_offset,
                          const __global float *sums, ulong sums_offset, const __global float *gamma,
                          ulong gamma_offset, uint rows, uint c, uint chunk_rows, uint flags) {
    ulong group = get_group_id(2), first = (ulong)get_group_id(0) * chunk_rows, at = (group * rows + first) * c;
    uint n = min(chunk_rows, rows - (uint)first);
    saved_offset += group * 2 * c;
    sums_offset += group * 2 * c;
#define CALL(col, nv, lanes)                                                                                           \
    chunk_dx(dx + dx_offset + at + (col), d_residual + d_residual_offset + at + (col), dy + dy_offset + at + (col),    \
             y + y_offset + at + (col), x + x_offset + at + (col), saved + saved_offset + (col),                       \
             sums + sums_offset + (col), gamma + gamma_offset + (col), n, 1.0f / (float)rows, c, flags, nv, lanes)
    FOR_COLUMNS(c, CALL)
#undef CALL
}
