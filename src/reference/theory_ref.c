#include "reference/theory_ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { M = OD_THEORY_NEURONS, K = OD_THEORY_FEATURES, D = THEORY_REF_DIMENSION, COPIES = 2 };
enum { USE = 5, SAMPLE = 16, NOISE, BARTLETT, CHI }; /* the last two words of counters */

/* A sample: z of its feature, the feature's patches in either view, noise, and what the neurons make of it. */
typedef struct sample {
    int feature, patches[2]; /* in view 0 and in view 1 */
    double z, *noise;        /* noise (patches, components) */
    double f[2][COPIES][M];  /* f_r of a view, with its noise as drawn and negated */
} sample;

typedef struct problem {
    const od_theory_config *c;
    bool projected;
    uint64_t seed;
    uint32_t step;
    int copies, d, first, components, noisy; /* of a view; coordinates; the first with noise, how many; noise patches */
    theory_ref_state *s, down;               /* down: the gradient */
    double outer[M][M];                      /* sum over noise patches of their weights' products */
    sample *samples;                         /* (batch) */
} problem;

/* ---- random numbers ---------------------------------------------------------------------------------------------- */

static void draw(const problem *p, uint32_t block, uint32_t part, uint32_t out[4]) {
    const uint32_t counter[4] = {block, p->step, part, USE}, key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
    od_philox(out, counter, key);
}

static double unit(uint32_t bits) {
    return ldexp((double)(bits >> 8) + 1, -24);
}

static void draw_normals(const problem *p, uint32_t block, uint32_t part, double out[4]) {
    uint32_t bits[4];
    draw(p, block, part, bits);
    for (int i = 0; i < 4; i += 2) {
        const double radius = sqrt(-2 * log(unit(bits[i])));
        const double angle = 2 * acos(-1.) * ldexp((double)(bits[i + 1] >> 8), -24);
        out[i] = radius * cos(angle);
        out[i + 1] = radius * sin(angle);
    }
}

/* C(n, k) */
static double choose(int n, int k) {
    double product = k >= 0 && k <= n;
    for (int i = 1; i <= k; i++)
        product = product * (n - k + i) / i;
    return product;
}

/* ---- forward ----------------------------------------------------------------------------------------------------- */

static void draw_sample(const problem *p, int index, sample *s) {
    const od_theory_config *c = p->c;
    const int half = c->patches / 2;
    const uint32_t blocks = (uint32_t)(p->noisy * p->components + 3) / 4;
    uint32_t bits[4];
    double below = 0;
    draw(p, (uint32_t)index, SAMPLE, bits);
    s->patches[0] = 0; /* hypergeometric: of P0 that hold the feature, half of all P are drawn */
    for (int n = 0; n < c->feature_patches; n++) {
        below += choose(c->feature_patches, n) * choose(p->noisy, half - n) / choose(c->patches, half);
        s->patches[0] += (double)bits[0] >= floor(ldexp(below, 32));
    }
    s->patches[1] = c->feature_patches - s->patches[0];
    s->feature = (int)((double)bits[1] * c->features / 0x1p32);
    s->z = (bits[2] >= 0x80000000u ? 1 : -1) * (double)(float)c->strength[s->feature];
    for (uint32_t b = 0; b < blocks; b++)
        draw_normals(p, (uint32_t)index * blocks + b, NOISE, s->noise + (size_t)4 * b);
}

/* <w_r, noise of a patch>, without the standard deviation. */
static double along(const problem *p, const sample *s, int r, int patch) {
    double sum = 0;
    for (int e = 0; e < p->components; e++)
        sum += p->s->w[r][p->first + e] * s->noise[patch * p->components + e];
    return sum;
}

static int view_of(const problem *p, const sample *s, int patch) {
    return patch < p->c->patches / 2 - s->patches[0] ? 0 : 1;
}

static void respond(const problem *p, sample *s) {
    const od_theory_config *c = p->c;
    for (int v = 0; v < 2; v++)
        for (int copy = 0; copy < p->copies; copy++)
            for (int r = 0; r < c->neurons; r++) {
                const double sign = copy ? -1 : 1;
                double f = s->patches[v] * pow(s->z * p->s->w[r][s->feature], c->degree);
                for (int patch = 0; patch < p->noisy; patch++)
                    if (view_of(p, s, patch) == v)
                        f += pow(sign * c->noise * along(p, s, r, patch), c->degree);
                s->f[v][copy][r] = f;
            }
}

static double online(const problem *p, const sample *s, int copy, int j) {
    double sum = 0;
    for (int r = 0; r < p->c->neurons; r++)
        sum += p->s->head[j][r] * s->f[0][copy][r];
    return sum;
}

/* Of output j over the batch and all pairs of copies. */
typedef struct statistics {
    double mean_f, mean_g, deviation_f, deviation_g, correlation, loss;
} statistics;

static statistics statistics_of(const problem *p, int j) {
    statistics t = {.deviation_f = 1, .deviation_g = 1};
    double ff = 0, gg = 0, fg = 0;
    const double n = (double)p->c->batch * p->copies * p->copies;
    for (int pass = 0; pass < 2; pass++) {
        double sum_f = 0, sum_g = 0;
        ff = gg = fg = 0;
        for (int i = 0; i < p->c->batch; i++)
            for (int a = 0; a < p->copies; a++)
                for (int b = 0; b < p->copies; b++) {
                    const double f = online(p, &p->samples[i], a, j) - t.mean_f,
                                 g = p->samples[i].f[1][b][j] - t.mean_g;
                    sum_f += f / n;
                    sum_g += g / n;
                    ff += f * f / n;
                    gg += g * g / n;
                    fg += f * g / n;
                }
        if (p->c->no_bn)
            break;
        if (pass == 0) {
            t.mean_f = sum_f;
            t.mean_g = sum_g;
        }
    }
    if (!p->c->no_bn) {
        t.deviation_f = sqrt(ff);
        t.deviation_g = sqrt(gg);
        t.correlation = fg / t.deviation_f / t.deviation_g;
        t.loss = 2 - 2 * t.correlation;
    } else
        t.loss = ff + gg - 2 * fg;
    return t;
}

/* ---- backward ---------------------------------------------------------------------------------------------------- */

/* Of the mean of (f - g)^2 by f, for outputs normalised with these statistics; `own`: how much the deviation gives. */
static double slope(const statistics *t, double f, double g, double own, double deviation, double n, bool no_bn) {
    return no_bn ? 2 * (f - g) / n : 2 * (own * t->correlation * f - g) / (n * deviation);
}

/* The sample's part of the gradients by its outputs; of the head's on the way. by (2 views, copies, M). */
static void output_gradients(problem *p, const statistics *t, const sample *s, double by[2][COPIES][M]) {
    const od_theory_config *c = p->c;
    const double n = (double)c->batch * p->copies * p->copies, own = c->detach_std ? 0 : 1;
    memset(by, 0, sizeof(double[2][COPIES][M]));
    for (int j = 0; j < c->neurons; j++)
        for (int a = 0; a < p->copies; a++)
            for (int b = 0; b < p->copies; b++) {
                const double f = (online(p, s, a, j) - t[j].mean_f) / t[j].deviation_f;
                const double g = (s->f[1][b][j] - t[j].mean_g) / t[j].deviation_g;
                const double by_f = slope(&t[j], f, g, own, t[j].deviation_f, n, c->no_bn);
                const double by_head = slope(&t[j], f, g, 1, t[j].deviation_f, n, c->no_bn);
                for (int r = 0; r < c->neurons; r++) {
                    by[0][a][r] += by_f * p->s->head[j][r];
                    p->down.head[j][r] += by_head * s->f[0][a][r];
                }
                if (c->no_stopgrad)
                    by[1][b][j] += slope(&t[j], g, f, own, t[j].deviation_g, n, c->no_bn);
            }
}

static void neuron_gradients(problem *p, const sample *s, double by[2][COPIES][M]) {
    const od_theory_config *c = p->c;
    const int q = c->degree, l = s->feature;
    for (int r = 0; r < c->neurons; r++)
        for (int v = 0; v < 2; v++)
            for (int copy = 0; copy < p->copies; copy++)
                p->down.w[r][l] += by[v][copy][r] * s->patches[v] * q * s->z * pow(s->z * p->s->w[r][l], q - 1);
    for (int patch = 0; patch < p->noisy; patch++) {
        const int v = view_of(p, s, patch);
        double weight[M] = {0};
        for (int r = 0; r < c->neurons; r++) {
            for (int copy = 0; copy < p->copies; copy++)
                weight[r] += by[v][copy][r] * pow(copy ? -1 : 1, q);
            weight[r] *= q * pow(c->noise, q) * pow(along(p, s, r, patch), q - 1);
            for (int e = 0; e < p->components; e++)
                p->down.w[r][p->first + e] += weight[r] * s->noise[patch * p->components + e];
        }
        for (int r = 0; r < c->neurons; r++)
            for (int o = 0; o < c->neurons; o++)
                p->outer[r][o] += weight[r] * weight[o];
    }
}

/* ---- update ------------------------------------------------------------------------------------------------------ */

/* The root of a chi-squared number: minus twice the logarithm of uniforms, and a squared normal where one is left. */
static double draw_chi(const problem *p, int which, int freedom, double normal) {
    double sum = freedom % 2 ? normal * normal : 0;
    for (int i = 0; i < freedom / 2; i++) {
        uint32_t bits[4];
        draw(p, (uint32_t)i / 4, (uint32_t)(CHI + which), bits);
        sum -= 2 * log(unit(bits[i % 4]));
    }
    return sqrt(sum);
}

/* The neurons' move outside the kept coordinates has the Gram matrix eta^2 L A A' L', L L' = outer; then all of it in
 * as many coordinates as there are neurons, by Gram and Schmidt. */
static void move_outside(problem *p, int outside) {
    const int m = p->c->neurons, k = p->c->features, n = m * (m + 1) / 2;
    double normals[M * (M + 1) / 2 + 4], l[M][M] = {{0}}, a[M][M] = {{0}}, x[M][2 * M] = {{0}};
    for (int b = 0; 4 * b < n; b++)
        draw_normals(p, (uint32_t)b, BARTLETT, normals + (ptrdiff_t)4 * b);
    for (int i = 0; i < m; i++)
        for (int j = 0; j <= i; j++) {
            double rest = p->outer[i][j];
            for (int o = 0; o < j; o++)
                rest -= l[i][o] * l[j][o];
            l[i][j] = i == j ? sqrt(fmax(rest, 0)) : l[j][j] > 0 ? rest / l[j][j] : 0;
            a[i][j] = normals[i * (i + 1) / 2 + j];
            if (i == j)
                a[i][j] = draw_chi(p, i, outside - i, a[i][j]);
        }
    for (int r = 0; r < m; r++)
        for (int i = 0; i < m; i++) {
            x[r][i] = p->s->w[r][k + i];
            for (int o = 0; o < m; o++)
                x[r][m + i] += p->c->eta * l[r][o] * a[o][i];
        }
    for (int r = 0; r < m; r++) {
        double length = 0;
        for (int i = 0; i < m; i++)
            p->s->w[r][k + i] = 0;
        for (int before = 0; before < r; before++) { /* rows above are unit vectors by now */
            double part = 0;
            for (int i = 0; i < 2 * m; i++)
                part += x[before][i] * x[r][i];
            for (int i = 0; i < 2 * m; i++)
                x[r][i] -= part * x[before][i];
            p->s->w[r][k + before] = part;
        }
        for (int i = 0; i < 2 * m; i++)
            length += x[r][i] * x[r][i];
        length = sqrt(length);
        p->s->w[r][k + r] = length;
        for (int i = 0; i < 2 * m; i++)
            x[r][i] /= length;
    }
}

static void update(problem *p) {
    const od_theory_config *c = p->c;
    const int outside = c->dimension - c->features - c->neurons;
    for (int r = 0; r < c->neurons; r++) {
        for (int i = 0; i < p->d; i++)
            p->s->w[r][i] -= c->eta * p->down.w[r][i];
        for (int o = 0; o < c->neurons; o++)
            if (c->head != OD_THEORY_NONE && (c->head != OD_THEORY_OFFDIAG || r != o))
                p->s->head[r][o] -= c->eta_head * p->down.head[r][o];
    }
    if (p->projected)
        move_outside(p, outside);
}

/* ---- a step ------------------------------------------------------------------------------------------------------ */

bool theory_ref_step(const od_theory_config *c, bool projected, uint64_t seed, uint32_t step, theory_ref_state *state,
                     double *loss) {
    problem p = {.c = c, .projected = projected, .seed = seed, .step = step, .s = state};
    statistics t[M];
    p.copies = c->plain_batch ? 1 : COPIES;
    p.d = projected ? c->features + c->neurons : c->dimension;
    p.first = c->noise_everywhere ? 0 : c->features;
    p.components = p.d - p.first;
    p.noisy = c->patches - c->feature_patches;
    const size_t each = (size_t)p.noisy * (size_t)p.components + 4;
    p.samples = calloc((size_t)c->batch, sizeof *p.samples);
    double *noise = calloc((size_t)c->batch * each, sizeof *noise);
    const bool ready = p.samples && noise;
    for (int i = 0; ready && i < c->batch; i++) {
        p.samples[i].noise = noise + (size_t)i * each;
        draw_sample(&p, i, &p.samples[i]);
        respond(&p, &p.samples[i]);
    }
    *loss = 0;
    for (int j = 0; ready && j < c->neurons; j++) {
        t[j] = statistics_of(&p, j);
        *loss += t[j].loss;
    }
    for (int i = 0; ready && i < c->batch; i++) {
        double by[2][COPIES][M];
        output_gradients(&p, t, &p.samples[i], by);
        neuron_gradients(&p, &p.samples[i], by);
    }
    if (ready)
        update(&p);
    free(noise);
    free(p.samples);
    return ready;
}
