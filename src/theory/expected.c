/* Expected gradients in closed form, and the paths they give: by plain steps or as a flow.
 *
 * With c_jl = <w_j, v_l>^q, S_ij = sum_l p_l alpha_l^2q c_il c_jl and g_ij = sigma^2 <w_i, w_j> over the noise's
 * coordinates, A_ij = E f_i(X1) f_j(X2) = k12 S_ij,    B_ij = E f_i(X1) f_j(X1) = k11 S_ij + nu E x_i^q x_j^q, where x
 * is normal with covariance g. N_j = (E A)_jj, D_j = (E B E')_jj, T_j = B_jj; the loss is sum_j (2 - 2 N_j / sqrt(D_j
 * T_j)), or D_j - 2 N_j + T_j without batch norm. */
#include <math.h>
#include <string.h>

#include "theory/theory.h"

enum { NM = OD_THEORY_NEURONS, NK = OD_THEORY_FEATURES };

/* What stays the same along a path. */
typedef struct moments {
    double k11, k12, nu, variance;      /* feature patches in one view squared, in two; noise patches; sigma^2 */
    double signal[NK];                  /* p_l alpha_l^2q */
    double isserlis[THEORY_DEGREE + 1]; /* E x^q y^q = sum_t isserlis[t] (g_xx g_yy)^((q - t)/2) g_xy^t, t odd */
    int m, k, q, noisy;                 /* noisy: the first coordinate with noise */
} moments;

static double power(double x, int n) {
    double y = 1;
    for (int i = 0; i < n; i++)
        y *= x;
    return y;
}

/* t! (q over t)^2 ((q - t - 1)!!)^2: t pairs across, the others within x and within y. */
static double isserlis(int q, int t) {
    double factor = 1;
    for (int i = 1; i <= t; i++)
        factor *= (double)(q - t + i) / i;
    for (int i = q - t - 1; i > 1; i -= 2)
        factor *= i;
    return factor * factor * tgamma(t + 1.);
}

static moments moments_of(const od_theory_config *c) {
    double P = c->patches, P0 = c->feature_patches, pairs = P0 * (P0 - 1);
    moments z = {.k12 = pairs * P / (4 * (P - 1)),
                 .k11 = P0 / 2 + pairs / 2 * (P / 2 - 1) / (P - 1),
                 .nu = (P - P0) / 2,
                 .variance = c->noise * c->noise,
                 .m = c->neurons,
                 .k = c->features,
                 .q = c->degree,
                 .noisy = c->noise_everywhere ? 0 : c->features};
    for (int l = 0; l < z.k; l++)
        z.signal[l] = power(c->strength[l], 2 * z.q) / z.k;
    for (int t = 1; t <= z.q; t += 2)
        z.isserlis[t] = isserlis(z.q, t);
    return z;
}

/* E x^q y^q for variances a, b and covariance g; *by_a and *by_g are its derivatives. */
static inline double noise_moment(const moments *z, int q, double a, double b, double g, double *by_a, double *by_g) {
    if (q == 3) {
        *by_a = 9 * b * g;
        *by_g = 9 * a * b + 18 * g * g;
        return 9 * a * b * g + 6 * g * g * g;
    }
    double sum = *by_a = *by_g = 0;
    for (int t = 1; t <= q; t += 2) {
        int e = (q - t) / 2;
        double across = power(g, t - 1), within = z->isserlis[t] * power(b, e);
        sum += within * power(a, e) * across * g;
        *by_g += within * power(a, e) * across * t;
        if (e > 0)
            *by_a += within * e * power(a, e - 1) * across * g;
    }
    return sum;
}

/* The loss and minus its gradient. Inlined with constant sizes for the common case, which is three times as fast. */
static inline __attribute__((always_inline)) double descend(const od_theory_config *c, const moments *z, int m, int k,
                                                            int q, const od_theory_state *s, od_theory_state *down) {
    double f[NM][NK], slope[NM][NK];        /* c_jl, and its derivative by <w_j, v_l> */
    double g[NM][NM], S[NM][NM], B[NM][NM]; /* (m, m) */
    double by_a[NM][NM], by_g[NM][NM];      /* of the noise's moment, by g_rr and g_rq */
    double M1[NM][NM], M2[NM][NM];          /* minus the derivatives by A and B, times 1 and 2 */
    double loss = 0;
    for (int j = 0; j < m; j++)
        for (int l = 0; l < k; l++) {
            double p = power(s->w[j][l], q - 1);
            f[j][l] = p * s->w[j][l];
            slope[j][l] = q * p;
        }
    for (int i = 0; i < m; i++)
        for (int j = 0; j <= i; j++) {
            S[i][j] = g[i][j] = 0;
            for (int l = 0; l < k; l++)
                S[i][j] += z->signal[l] * f[i][l] * f[j][l];
            for (int l = z->noisy; l < k + m; l++)
                g[i][j] += s->w[i][l] * s->w[j][l];
            g[i][j] *= z->variance;
            S[j][i] = S[i][j];
            g[j][i] = g[i][j];
        }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < m; j++)
            B[i][j] =
                z->k11 * S[i][j] + z->nu * noise_moment(z, q, g[i][i], g[j][j], g[i][j], &by_a[i][j], &by_g[i][j]);
    if (down)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < m; j++)
                M1[i][j] = M2[i][j] = 0;
    for (int j = 0; j < m; j++) {
        double N = 0, D = 0, EB[NM];
        const double *E = s->head[j], T = B[j][j];
        for (int r = 0; r < m; r++) {
            N += E[r] * z->k12 * S[r][j];
            EB[r] = 0;
            for (int i = 0; i < m; i++)
                EB[r] += E[i] * B[i][r];
        }
        for (int r = 0; r < m; r++)
            D += E[r] * EB[r];
        double a = c->no_bn ? 1 : 1 / sqrt(D * T), b = c->no_bn ? 1 : N / D;
        loss += c->no_bn ? D - 2 * N + T : 2 - 2 * N * a;
        if (!down)
            continue;
        for (int r = 0; r < m; r++)
            down->head[j][r] = c->head == OD_THEORY_NONE || (c->head == OD_THEORY_OFFDIAG && r == j)
                                   ? 0
                                   : 2 * a * (z->k12 * S[r][j] - b * EB[r]);
        double by_B = c->detach_std && !c->no_bn ? 0 : a * b;
        for (int r = 0; r < m; r++) {
            M1[r][j] += 2 * a * E[r];
            for (int i = 0; i < m; i++)
                M2[r][i] += 2 * by_B * E[r] * E[i];
            if (c->no_stopgrad)
                M1[j][r] += 2 * a * E[r];
        }
        if (c->no_stopgrad)
            M2[j][j] += c->no_bn ? 2 : c->detach_std ? 0 : 2 * a * N / T;
    }
    if (!down)
        return loss;
    for (int r = 0; r < m; r++) {
        double *to = down->w[r];
        for (int l = 0; l < k + m; l++)
            to[l] = 0;
        for (int i = 0; i < m; i++) {
            double K = z->k12 * M1[r][i] - z->k11 * M2[r][i], pull = z->nu * z->variance * M2[r][i];
            for (int l = 0; l < k; l++)
                to[l] += slope[r][l] * K * z->signal[l] * f[i][l];
            for (int l = z->noisy; l < k + m; l++)
                to[l] -= pull * (2 * by_a[r][i] * s->w[r][l] + by_g[r][i] * s->w[i][l]);
        }
    }
    return loss;
}

static double loss_and_descent(const od_theory_config *c, const moments *z, const od_theory_state *s,
                               od_theory_state *down) {
    if (z->m == 2 && z->k == 2 && z->q == 3)
        return descend(c, z, 2, 2, 3, s, down);
    return descend(c, z, z->m, z->k, z->q, s, down);
}

double od_theory_loss(const od_theory_config *config, const od_theory_state *state, od_theory_state *descent) {
    moments z = moments_of(config);
    if (descent)
        memset(descent, 0, sizeof *descent);
    return loss_and_descent(config, &z, state, descent);
}

/* to = from + sum_i weights[i] (eta, eta_head) * down[i] */
static inline void advance(const od_theory_config *c, int m, int k, od_theory_state *to, const od_theory_state *from,
                           const double *weights, const od_theory_state *down, int count) {
    for (int j = 0; j < m; j++) {
        for (int l = 0; l < k + m; l++) {
            double sum = 0;
            for (int i = 0; i < count; i++)
                sum += weights[i] * down[i].w[j][l];
            to->w[j][l] = from->w[j][l] + c->eta * sum;
        }
        for (int r = 0; r < m; r++) {
            double sum = 0;
            for (int i = 0; i < count; i++)
                sum += weights[i] * down[i].head[j][r];
            to->head[j][r] = from->head[j][r] + c->eta_head * sum;
        }
    }
}

static void advance_any(const od_theory_config *c, od_theory_state *to, const od_theory_state *from,
                        const double *weights, const od_theory_state *down, int count) {
    if (c->neurons == 2 && c->features == 2 && count == 1)
        advance(c, 2, 2, to, from, weights, down, 1);
    else
        advance(c, c->neurons, c->features, to, from, weights, down, count);
}

/* ---- plain steps --------------------------------------------------------------------------------------------------
 */

static bool learned_strong(const moments *z, const od_theory_state *s) {
    for (int j = 0; j < z->m; j++) {
        double length = 0;
        for (int l = 0; l < z->k + z->m; l++)
            length += s->w[j][l] * s->w[j][l];
        if (s->w[j][0] * s->w[j][0] > 0.81 * length)
            return true;
    }
    return false;
}

static void identity(od_theory_state *s, int m) {
    for (int j = 0; j < m; j++)
        for (int r = 0; r < m; r++)
            s->head[j][r] = j == r;
}

static void plain_steps(od_theory_config c, const moments *z, od_theory_state s, const double *steps, size_t rows,
                        double *path) {
    od_theory_state down;
    size_t row = 0, columns = od_theory_columns(&c);
    double drop_at = INFINITY, one = 1;
    for (uint64_t step = 0; row < rows; step++) {
        if (c.drop_head > 0) {
            if (isinf(drop_at) && learned_strong(z, &s))
                drop_at = c.drop_head * (double)step;
            if ((double)step >= drop_at) {
                identity(&s, z->m);
                c.head = OD_THEORY_NONE;
            }
        }
        double loss = loss_and_descent(&c, z, &s, &down);
        if (step == (uint64_t)steps[row])
            theory_observe(&c, &s, loss, path + columns * row++);
        advance_any(&c, &s, &s, &one, &down, 1);
    }
}

/* ---- the flow -----------------------------------------------------------------------------------------------------
 */

/* Dormand and Prince's pair of orders 5 and 4; the last stage is the next step's first. */
enum { STAGES = 7 };
static const double stage[STAGES][STAGES - 1] = {
    {0},
    {1. / 5},
    {3. / 40, 9. / 40},
    {44. / 45, -56. / 15, 32. / 9},
    {19372. / 6561, -25360. / 2187, 64448. / 6561, -212. / 729},
    {9017. / 3168, -355. / 33, 46732. / 5247, 49. / 176, -5103. / 18656},
    {35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84},
};
static const double error_weight[STAGES] = {71. / 57600,      0,         -71. / 16695, 71. / 1920,
                                            -17253. / 339200, 22. / 525, -1. / 40};
static const double tolerance = 1e-9;

/* The largest error of a step of length h, in units of what is allowed. */
static double step_error(const od_theory_config *c, const od_theory_state *down, const od_theory_state *s, double h) {
    double worst = 0, weights[STAGES];
    od_theory_state zero = {0}, error = {0};
    for (int i = 0; i < STAGES; i++)
        weights[i] = h * error_weight[i];
    advance_any(c, &error, &zero, weights, down, STAGES);
    for (int j = 0; j < c->neurons; j++) {
        for (int l = 0; l < c->features + c->neurons; l++)
            worst = fmax(worst, fabs(error.w[j][l]) / (tolerance * (1e-3 + fabs(s->w[j][l]))));
        for (int r = 0; r < c->neurons; r++)
            worst = fmax(worst, fabs(error.head[j][r]) / (tolerance * (1e-3 + fabs(s->head[j][r]))));
    }
    return isfinite(error.w[0][0]) ? worst : INFINITY;
}

static void flow(const od_theory_config *c, const moments *z, od_theory_state s, const double *steps, size_t rows,
                 double *path) {
    od_theory_state down[STAGES] = {0}, at = s;
    size_t columns = od_theory_columns(c);
    double time = 0, h = 1, weights[STAGES], loss = loss_and_descent(c, z, &s, &down[0]);
    for (size_t row = 0; row < rows;) {
        if (time >= steps[row] || !isfinite(loss)) {
            theory_observe(c, &s, loss, path + columns * row++);
            continue;
        }
        double length = fmin(h, steps[row] - time), next = loss;
        for (int i = 1; i < STAGES; i++) {
            for (int n = 0; n < i; n++)
                weights[n] = length * stage[i][n];
            advance_any(c, &at, &s, weights, down, i);
            next = loss_and_descent(c, z, &at, &down[i]);
        }
        double error = step_error(c, down, &at, length), factor = 0.9 * pow(fmax(error, 1e-10), -0.2);
        if (error <= 1 || length < 1e-9) {
            time = length < steps[row] - time ? time + length : steps[row];
            s = at;
            loss = next;
            down[0] = down[STAGES - 1];
        }
        if (length == h || error > 1) /* a step cut short by a row says nothing of the next one */
            h = length * fmin(5, fmax(0.2, factor));
    }
}

void theory_expected(const od_theory_config *c, const od_theory_state *start, const double *steps, size_t rows,
                     double *path) {
    moments z = moments_of(c);
    if (c->integrator == OD_THEORY_FLOW)
        flow(c, &z, *start, steps, rows, path);
    else
        plain_steps(*c, &z, *start, steps, rows, path);
}
