/* Sampled training of the theory's setting: one seed a lane, V lanes a work-item, TEAM work-items a group.
 *
 * A neuron is D coordinates, the K features first; noise lives in those from LO on, ND of them. There are two ways to
 * draw it:
 *   all        D is the dimension: every component of each noise patch is drawn.
 *   projected  D is K + M: only the components within the span of the features and the neurons are. Given those, a
 *              patch's weight in a gradient is known, and its component outside the span is normal and independent of
 *              all else. So the neurons move outside the span by matrices Z (M, OUTSIDE) whose columns are independent
 *              N(0, C), C the sum over patches of the weights' outer products. Only the Gram matrix of the neurons
 *              matters from there on, and Z Z' is Wishart: L A A' L' with L L' = C and Bartlett's lower-triangular A of
 *              normals and roots of chi-squared numbers. Exactly the same distribution, with fewer numbers drawn.
 *
 * Numbers come from Philox with the seed as the key and {block, step, part, THEORY_RNG} as the counter, so that a seed
 * means the same on every device. Antithetic copies (SIGNS 2): each sample also with the noise of view 1, of view 2, of
 * both negated. Everything is float, in arrays [group][slot][work-item][lane]. */
#include "common.clh"
#include "philox_lanes.clh"
#include "vector.clh"

enum { THEORY_RNG = 5, PART_SAMPLE = 16, PART_NOISE, PART_BARTLETT, PART_CHI };

/* Sizes that are not constants of the program, and where a lane's arrays are. */
typedef struct problem {
    int d;           /* coordinates of a neuron */
    int batch, view; /* samples; patches in a view */
    int feature_patches, noise_patches;
    float noise, eta;
    uvec key[2];
    __global vec *state;   /* W (M, d), E (M, M), the last loss */
    __global vec *change;  /* (M, d): W's gradient */
    __global vec *samples; /* (batch, sample_slots) */
    __global const uint *counts, *features;
    __global const float *strengths;
} problem;
#define SLOT(base, i) (base)[(ulong)(i)*TEAM]
#if PROJECTED
#define DIM(p) (K + M)
#else
#define DIM(p) (p)->d
#endif

/* A sample's slots: its noise (noise_patches, ND) to a multiple of 4, <w_r, X_p> (noise_patches, M), the rest. */
static inline int noise_blocks(const problem *p) {
    return CEIL_DIV(p->noise_patches * (DIM(p) - LO), 4);
}
static inline int sample_slots(const problem *p) {
    return 4 * noise_blocks(p) + p->noise_patches * M + 2 * M + K + 1;
}
#define NOISE_AT(p) 0
#define ALONG_AT(p) (4 * noise_blocks(p))
#define REST_AT(p)  (4 * noise_blocks(p) + (p)->noise_patches * M)

/* What a sample is, apart from its noise patches. */
typedef struct sample {
    vec z[K];         /* +-alpha of its feature, 0 for the others */
    vec n1, n2;       /* feature patches in views 1 and 2 */
    vec u1[M], u2[M]; /* what the noise patches of a view add to f_r */
} sample;

/* f_r in view 1 and g_r in view 2, by copy. */
typedef struct outputs {
    vec f[SIGNS][M], g[SIGNS][M];
} outputs;

/* The parts of a neuron that many loops use. */
typedef struct neurons {
    vec w[M][K], head[M][M];
} neurons;

static inline vec power(vec x, int n) {
    vec y = (vec)(1.0f);
    for (int i = 0; i < n; i++)
        y *= x;
    return y;
}

/* The sign of a sample's noise terms in copy c: (-1)^Q for a negated view. */
static inline float copy_sign(int c) {
    return c * (Q % 2) ? -1.0f : 1.0f;
}

static inline ivec in_view_1(const problem *p, const sample *s, int patch) {
    return (vec)((float)patch) < (float)p->view - s->n1;
}

/* ---- forward ------------------------------------------------------------------------------------------------------
 */

/* How many of the feature's patches fall into view 1 is hypergeometric; thresholds of 32 bits. */
static inline void draw_sample(sample *s, const problem *p, uint i, uint step) {
    uvec bits[4];
    philox_lanes(bits, i, step, PART_SAMPLE, THEORY_RNG, p->key);
    s->n1 = ZERO;
    for (int t = 0; t < p->feature_patches; t++)
        s->n1 += select(ZERO, (vec)(1.0f), bits[0] >= p->counts[t]);
    s->n2 = (float)p->feature_patches - s->n1;
    for (int l = 0; l < K; l++) {
        vec alpha = select((vec)(-p->strengths[l]), (vec)(p->strengths[l]), bits[2] >= 0x80000000u);
        ivec chosen = bits[1] >= (l > 0 ? p->features[l - 1] : 0u);
        if (l + 1 < K)
            chosen &= bits[1] < p->features[l];
        s->z[l] = keep(alpha, chosen);
    }
}

/* Draw the noise of sample i into `to`, project it on the neurons, and add up its share of the outputs. */
static inline void draw_noise(const problem *p, sample *s, __global vec *to, uint i, uint step) {
    const int nd = DIM(p) - LO, blocks = noise_blocks(p);
    __global vec *noise = &SLOT(to, NOISE_AT(p)), *along = &SLOT(to, ALONG_AT(p));
    for (int b = 0; b < blocks; b++) {
        vec four[4];
        normal_lanes(four, i * (uint)blocks + (uint)b, step, PART_NOISE, THEORY_RNG, p->key);
        for (int e = 0; e < 4; e++)
            SLOT(noise, 4 * b + e) = four[e];
    }
    for (int r = 0; r < M; r++)
        s->u1[r] = s->u2[r] = ZERO;
    for (int patch = 0; patch < p->noise_patches; patch++) {
        ivec first = in_view_1(p, s, patch);
        vec sum[M];
        for (int r = 0; r < M; r++)
            sum[r] = ZERO;
        for (int c = 0; c < nd; c++)
            for (int r = 0; r < M; r++)
                sum[r] = fma(SLOT(p->state, r * DIM(p) + LO + c), SLOT(noise, patch * nd + c), sum[r]);
        for (int r = 0; r < M; r++) {
            vec x = p->noise * sum[r], y = power(x, Q), y1 = keep(y, first);
            SLOT(along, patch * M + r) = x;
            s->u1[r] += y1;
            s->u2[r] += y - y1;
        }
    }
}

static inline void store_sample(const problem *p, const sample *s, __global vec *to) {
    __global vec *rest = &SLOT(to, REST_AT(p));
    for (int r = 0; r < M; r++) {
        SLOT(rest, r) = s->u1[r];
        SLOT(rest, M + r) = s->u2[r];
    }
    for (int l = 0; l < K; l++)
        SLOT(rest, 2 * M + l) = s->z[l];
    SLOT(rest, 2 * M + K) = s->n1;
}

static inline void load_sample(sample *s, const problem *p, __global vec *from) {
    __global vec *rest = &SLOT(from, REST_AT(p));
    for (int r = 0; r < M; r++) {
        s->u1[r] = SLOT(rest, r);
        s->u2[r] = SLOT(rest, M + r);
    }
    for (int l = 0; l < K; l++)
        s->z[l] = SLOT(rest, 2 * M + l);
    s->n1 = SLOT(rest, 2 * M + K);
    s->n2 = (float)p->feature_patches - s->n1;
}

static inline void outputs_of(outputs *o, const neurons *n, const sample *s) {
    for (int r = 0; r < M; r++) {
        vec signal = ZERO;
        for (int l = 0; l < K; l++)
            signal += power(s->z[l] * n->w[r][l], Q);
        for (int c = 0; c < SIGNS; c++) {
            o->f[c][r] = s->n1 * signal + copy_sign(c) * s->u1[r];
            o->g[c][r] = s->n2 * signal + copy_sign(c) * s->u2[r];
        }
    }
}

/* F_j of a copy. */
static inline vec online(const neurons *n, const outputs *o, int c, int j) {
    vec sum = ZERO;
    for (int r = 0; r < M; r++)
        sum += n->head[j][r] * o->f[c][r];
    return sum;
}

/* The batch's statistics of F_j and G_j. */
typedef struct statistics {
    vec mean_f[M], mean_g[M], scale_f[M], scale_g[M]; /* scale: 1 / standard deviation; 0 and 1 without batch norm */
    vec correlation[M], loss;
} statistics;

static inline void means(const problem *p, const neurons *n, uint step, statistics *t) {
    for (int j = 0; j < M; j++)
        t->mean_f[j] = t->mean_g[j] = ZERO;
    for (int i = 0; i < p->batch; i++) {
        __global vec *at = &SLOT(p->samples, (ulong)i * sample_slots(p));
        sample s;
        outputs o;
        draw_sample(&s, p, (uint)i, step);
        draw_noise(p, &s, at, (uint)i, step);
        store_sample(p, &s, at);
        outputs_of(&o, n, &s);
        for (int j = 0; j < M; j++)
            for (int c = 0; c < SIGNS; c++) {
                t->mean_f[j] += online(n, &o, c, j);
                t->mean_g[j] += o.g[c][j];
            }
    }
    for (int j = 0; j < M; j++) {
        t->mean_f[j] *= BATCH_NORM / (SIGNS * (float)p->batch);
        t->mean_g[j] *= BATCH_NORM / (SIGNS * (float)p->batch);
    }
}

/* The copies of a sample are all pairs of SIGNS copies of either view. */
static inline void deviations(const problem *p, const neurons *n, statistics *t) {
    vec ff[M], gg[M], fg[M];
    for (int j = 0; j < M; j++)
        ff[j] = gg[j] = fg[j] = ZERO;
    for (int i = 0; i < p->batch; i++) {
        sample s;
        outputs o;
        load_sample(&s, p, &SLOT(p->samples, (ulong)i * sample_slots(p)));
        outputs_of(&o, n, &s);
        for (int j = 0; j < M; j++) {
            vec sum_f = ZERO, sum_g = ZERO;
            for (int c = 0; c < SIGNS; c++) {
                vec f = online(n, &o, c, j) - t->mean_f[j], g = o.g[c][j] - t->mean_g[j];
                sum_f += f;
                sum_g += g;
                ff[j] = fma(f, f, ff[j]);
                gg[j] = fma(g, g, gg[j]);
            }
            fg[j] = fma(sum_f, sum_g, fg[j]);
        }
    }
    float one = 1.0f / (SIGNS * (float)p->batch), pairs = one / SIGNS;
    t->loss = ZERO;
    for (int j = 0; j < M; j++) {
#if BATCH_NORM
        t->scale_f[j] = rsqrt(one * ff[j]);
        t->scale_g[j] = rsqrt(one * gg[j]);
        t->correlation[j] = pairs * fg[j] * t->scale_f[j] * t->scale_g[j];
        t->loss += 2.0f - 2.0f * t->correlation[j];
#else
        t->scale_f[j] = t->scale_g[j] = t->correlation[j] = (vec)(1.0f);
        t->loss += one * (ff[j] + gg[j]) - 2.0f * pairs * fg[j];
#endif
    }
}

/* ---- backward -----------------------------------------------------------------------------------------------------
 */

typedef struct gradients {
    vec head[M][M];
    vec outer[M][M]; /* sum over noise patches of the weights' outer products */
} gradients;

/* By f_r of view 1 (df), and by g_r of view 2 (dg), of each copy, summed over the copies of the other view; the head's
 * gradient is added up on the way. */
static inline void output_gradients(const problem *p, const neurons *n, const statistics *t, const outputs *o,
                                    vec (*df)[M], vec (*dg)[M], gradients *sum) {
    const float each = 2.0f / (SIGNS * SIGNS * (float)p->batch);
    vec total_f[M], total_g[M]; /* normalised, over copies */
    for (int j = 0; j < M; j++) {
        total_f[j] = total_g[j] = ZERO;
        for (int c = 0; c < SIGNS; c++) {
            total_f[j] += (online(n, o, c, j) - t->mean_f[j]) * t->scale_f[j];
            total_g[j] += (o->g[c][j] - t->mean_g[j]) * t->scale_g[j];
        }
    }
    for (int c = 0; c < SIGNS; c++) {
        for (int r = 0; r < M; r++)
            df[c][r] = dg[c][r] = ZERO;
        for (int j = 0; j < M; j++) {
            vec f = (online(n, o, c, j) - t->mean_f[j]) * t->scale_f[j];
            vec g = (o->g[c][j] - t->mean_g[j]) * t->scale_g[j];
            vec by_head = each * t->scale_f[j] * (SIGNS * t->correlation[j] * f - total_g[j]);
            vec shrink = DETACH_STD ? ZERO : t->correlation[j];
            vec by_f = each * t->scale_f[j] * (SIGNS * shrink * f - total_g[j]);
            for (int r = 0; r < M; r++) {
                sum->head[j][r] = fma(by_head, o->f[c][r], sum->head[j][r]);
                df[c][r] = fma(by_f, n->head[j][r], df[c][r]);
            }
            if (!STOP_GRADIENT)
                dg[c][j] = each * t->scale_g[j] * (SIGNS * shrink * g - total_f[j]);
        }
    }
}

/* Add a sample's part to W's gradient. A noise patch X_p of a copy enters as its sign times X_p. */
static inline void neuron_gradients(const problem *p, const neurons *n, const sample *s, __global vec *at, vec (*df)[M],
                                    vec (*dg)[M], gradients *sum) {
    const int nd = DIM(p) - LO;
    __global vec *noise = &SLOT(at, NOISE_AT(p)), *along = &SLOT(at, ALONG_AT(p));
    vec odd_f[M], odd_g[M];
    for (int r = 0; r < M; r++) {
        vec even_f = ZERO, even_g = ZERO;
        odd_f[r] = odd_g[r] = ZERO;
        for (int c = 0; c < SIGNS; c++) {
            even_f += df[c][r];
            even_g += dg[c][r];
            odd_f[r] += copy_sign(c) * df[c][r];
            odd_g[r] += copy_sign(c) * dg[c][r];
        }
        odd_f[r] *= (float)Q * p->noise;
        odd_g[r] *= (float)Q * p->noise;
        for (int l = 0; l < K; l++)
            SLOT(p->change, r * DIM(p) + l) +=
                (even_f * s->n1 + even_g * s->n2) * (float)Q * s->z[l] * power(s->z[l] * n->w[r][l], Q - 1);
    }
    for (int patch = 0; patch < p->noise_patches; patch++) {
        ivec first = in_view_1(p, s, patch);
        vec weight[M];
        for (int r = 0; r < M; r++) {
            vec slope = power(SLOT(along, patch * M + r), Q - 1);
            weight[r] = slope * (STOP_GRADIENT ? keep(odd_f[r], first) : select(odd_g[r], odd_f[r], first));
            SLOT(along, patch * M + r) = weight[r];
        }
#if PROJECTED
        for (int r = 0; r < M; r++)
            for (int q = 0; q <= r; q++)
                sum->outer[r][q] = fma(weight[r], weight[q], sum->outer[r][q]);
#endif
    }
    for (int c = 0; c < nd; c++)
        for (int r = 0; r < M; r++) {
            vec total = SLOT(p->change, r * DIM(p) + LO + c);
            for (int patch = 0; patch < p->noise_patches; patch++)
                total = fma(SLOT(along, patch * M + r), SLOT(noise, patch * nd + c), total);
            SLOT(p->change, r * DIM(p) + LO + c) = total;
        }
}

static inline void backward(const problem *p, const neurons *n, const statistics *t, gradients *sum) {
    for (int i = 0; i < M * DIM(p); i++)
        SLOT(p->change, i) = ZERO;
    for (int r = 0; r < M; r++)
        for (int q = 0; q < M; q++)
            sum->head[r][q] = sum->outer[r][q] = ZERO;
    for (int i = 0; i < p->batch; i++) {
        vec df[SIGNS][M], dg[SIGNS][M];
        __global vec *at = &SLOT(p->samples, (ulong)i * sample_slots(p));
        sample s;
        outputs o;
        load_sample(&s, p, at);
        outputs_of(&o, n, &s);
        output_gradients(p, n, t, &o, df, dg, sum);
        neuron_gradients(p, n, &s, at, df, dg, sum);
    }
}

/* ---- update -------------------------------------------------------------------------------------------------------
 */

#if PROJECTED
/* sqrt of a chi-squared number with `freedom` degrees: minus twice the logarithm of a product of freedom / 2 uniforms,
 * and a squared normal where that leaves a rest. */
static vec draw_chi(const uvec *key, uint step, uint which, int freedom, vec normal) {
    vec sum = freedom % 2 ? normal * normal : ZERO;
    for (int left = freedom / 2, block = 0; left > 0; left -= 4, block++) {
        uvec bits[4];
        vec product = (vec)(1.0f);
        philox_lanes(bits, (uint)block, step, PART_CHI + which, THEORY_RNG, key);
        for (int i = 0; i < 4; i++)
            product *= i < left ? unit_lanes(bits[i]) : (vec)(1.0f);
        sum -= 2.0f * log_lanes(product);
    }
    return sqrt(sum);
}

/* Lower-triangular rows (M, M) with the Gram matrix of the rows of x (M, 2M). */
static void triangular(vec (*out)[M], vec (*x)[2 * M]) {
    for (int r = 0; r < M; r++) {
        vec square = ZERO;
        for (int i = 0; i < 2 * M; i++)
            square = fma(x[r][i], x[r][i], square);
        vec inverse = select(ZERO, rsqrt(square), square > 1e-30f);
        out[r][r] = square * inverse;
        for (int i = 0; i < 2 * M; i++)
            x[r][i] *= inverse;
        for (int below = r + 1; below < M; below++) {
            vec along = ZERO;
            for (int i = 0; i < 2 * M; i++)
                along = fma(x[r][i], x[below][i], along);
            for (int i = 0; i < 2 * M; i++)
                x[below][i] = fma(-along, x[r][i], x[below][i]);
            out[below][r] = along;
            out[r][below] = ZERO;
        }
    }
}

/* Move the neurons by N(0, eta^2 C) in each of `outside` further dimensions, and turn those into their M coordinates.
 */
static void move_outside(const problem *p, const gradients *by, uint step, int outside) {
    vec factor[M][M], bartlett[M][M], x[M][2 * M], w[M][M], normal[4 * CEIL_DIV(M * (M + 1) / 2, 4)];
    for (int b = 0; b < CEIL_DIV(M * (M + 1) / 2, 4); b++)
        normal_lanes(normal + 4 * b, (uint)b, step, PART_BARTLETT, THEORY_RNG, p->key);
    for (int i = 0; i < M; i++)
        for (int j = 0; j <= i; j++) { /* Cholesky of C, and Bartlett's matrix */
            vec rest = by->outer[i][j];
            for (int c = 0; c < j; c++)
                rest -= factor[i][c] * factor[j][c];
            vec pivot = i == j ? rest : factor[j][j] * factor[j][j]; /* C may be singular */
            factor[i][j] = keep(rest * rsqrt(pivot), pivot > 1e-37f);
            bartlett[i][j] = normal[i * (i + 1) / 2 + j];
            if (i == j)
                bartlett[i][i] = draw_chi(p->key, step, (uint)i, outside - i, bartlett[i][i]);
        }
    for (int r = 0; r < M; r++)
        for (int c = 0; c < M; c++) {
            vec sum = ZERO;
            for (int i = c; i <= r; i++)
                sum += factor[r][i] * bartlett[i][c];
            x[r][c] = SLOT(p->state, r * DIM(p) + K + c);
            x[r][M + c] = p->eta * sum;
        }
    triangular(w, x);
    for (int r = 0; r < M; r++)
        for (int c = 0; c < M; c++)
            SLOT(p->state, r * DIM(p) + K + c) = w[r][c];
}
#endif

static inline void load_neurons(neurons *n, const problem *p) {
    for (int r = 0; r < M; r++) {
        for (int l = 0; l < K; l++)
            n->w[r][l] = SLOT(p->state, r * DIM(p) + l);
        for (int q = 0; q < M; q++)
            n->head[r][q] = SLOT(p->state, M * DIM(p) + r * M + q);
    }
}

static inline void update(const problem *p, neurons *n, const gradients *by, float eta_head, int outside, uint step) {
    for (int i = 0; i < M * DIM(p); i++)
        SLOT(p->state, i) = fma((vec)(-p->eta), SLOT(p->change, i), SLOT(p->state, i));
    for (int r = 0; r < M; r++)
        for (int q = 0; q < M; q++)
            if (TRAIN_HEAD == 2 || (TRAIN_HEAD == 1 && r != q))
                SLOT(p->state, M * DIM(p) + r * M + q) = fma((vec)(-eta_head), by->head[r][q], n->head[r][q]);
#if PROJECTED
    if (outside > 0)
        move_outside(p, by, step, outside);
#endif
    load_neurons(n, p);
}

/* ---- the kernel ---------------------------------------------------------------------------------------------------
 */

/* The stride of observed steps: theory_stride on the host. */
static inline uint row_stride(uint step, uint rows) {
    uint doublings = step / rows;
    return doublings > 1u ? 1u << (31u - clz(doublings)) : 1u;
}

/* A row: loss, features (M, K), lengths (M), head (M, M). */
static inline void observe(const problem *p, const neurons *n, vec loss, __global vec *row) {
    SLOT(row, 0) = loss;
    for (int r = 0; r < M; r++) {
        vec square = ZERO;
        for (int i = 0; i < DIM(p); i++)
            square = fma(SLOT(p->state, r * DIM(p) + i), SLOT(p->state, r * DIM(p) + i), square);
        SLOT(row, 1 + M * K + r) = sqrt(square);
        for (int l = 0; l < K; l++)
            SLOT(row, 1 + r * K + l) = n->w[r][l];
        for (int q = 0; q < M; q++)
            SLOT(row, 1 + M * (K + 1 + r) + q) = n->head[r][q];
    }
}

/* Steps first_step to first_step + steps - 1 of every seed, and a row of the state before each observed one.
 * state (groups, M d + M M + 1); rows (rows of these steps, groups, 1 + M (K + 1 + M)); scratch (groups, batch
 * sample_slots + M d), all by (TEAM, V) lanes; counts (P0) and features (K - 1): thresholds of n1 and of the feature.
 */
TEAM_KERNEL theory_steps(__global vec *state, __global vec *rows, __global vec *scratch, __global const uint *counts,
                         __global const uint *features, __global const float *strengths, uint first_step, uint steps,
                         uint rows_per_doubling, uint seed_low, uint seed_high, int dimension, int batch,
                         int view_patches, int feature_patches, int noise_patches, float noise, float eta,
                         float eta_head, int outside) {
    const uint group = (uint)get_group_id(0), groups = (uint)get_num_groups(0), lane = (uint)get_local_id(0);
    const uvec index = lane_numbers() + (group * TEAM + lane) * V, low = seed_low + index;
    problem p = {.d = dimension,
                 .batch = batch,
                 .view = view_patches,
                 .feature_patches = feature_patches,
                 .noise_patches = noise_patches,
                 .noise = noise,
                 .eta = eta,
                 .counts = counts,
                 .features = features,
                 .strengths = strengths};
    p.key[0] = low;
    p.key[1] = seed_high + select((uvec)(0u), (uvec)(1u), low < index);
    const ulong state_slots = (ulong)M * DIM(&p) + M * M + 1, sample_area = (ulong)batch * sample_slots(&p);
    p.state = state + group * state_slots * TEAM + lane;
    p.samples = scratch + group * (sample_area + M * DIM(&p)) * TEAM + lane;
    p.change = p.samples + sample_area * TEAM;
    neurons n;
    load_neurons(&n, &p);
    ulong row = 0;
    for (uint step = first_step; step - first_step < steps; step++) {
        statistics t;
        gradients by;
        means(&p, &n, step, &t);
        deviations(&p, &n, &t);
        if (step % row_stride(step, rows_per_doubling) == 0)
            observe(&p, &n, t.loss, rows + (row++ * groups + group) * (1 + M * (K + 1 + M)) * TEAM + lane);
        backward(&p, &n, &t, &by);
        update(&p, &n, &by, eta_head, outside, step);
        SLOT(p.state, state_slots - 1) = t.loss;
    }
}
