/* The theory's kernel: two steps of sampled training against the same steps in double precision. */
#include <math.h>
#include <stdlib.h>

#include "cli/selftest/runner.h"
#include "offdiag/theory.h"
#include "reference/theory_ref.h"
#include "theory/theory.h"

enum { SEEDS = 17, STEPS = 2, BATCH = 3 };

/* A state that is no special point, large enough that a step moves it well above rounding. */
static od_theory_state some_state(const od_theory_config *c, int seed) {
    od_theory_state s = {0};
    for (int j = 0; j < c->neurons; j++) {
        for (int l = 0; l < c->features + c->neurons; l++)
            s.w[j][l] = (float)(0.5 * sin(1 + 1.7 * j + 2.3 * l + seed) + (l == j) * 0.4);
        for (int r = 0; r < c->neurons; r++)
            s.head[j][r] = (float)((j == r) + 0.3 * cos(j + 2.1 * r + seed));
    }
    return s;
}

/* A row as od_theory_run has it. */
static void observe(const od_theory_config *c, int d, const theory_ref_state *s, double loss, double *row) {
    const int m = c->neurons, k = c->features;
    row[0] = loss;
    for (int r = 0; r < m; r++) {
        double square = 0;
        for (int i = 0; i < d; i++) {
            square += s->w[r][i] * s->w[r][i];
            if (i < k)
                row[1 + r * k + i] = s->w[r][i];
        }
        row[1 + m * k + r] = sqrt(square);
        for (int q = 0; q < m; q++)
            row[1 + m * (k + 1 + r) + q] = s->head[r][q];
    }
}

/* paths (seeds, rows, columns); the last row has the loss of the last batch. */
static bool reference(const od_theory_config *c, bool projected, const od_theory_state *starts, size_t rows,
                      double *paths) {
    const int d = projected ? c->features + c->neurons : c->dimension;
    const size_t columns = od_theory_columns(c);
    for (size_t seed = 0; seed < SEEDS; seed++) {
        theory_ref_state s = {0}, before;
        double loss = 0;
        for (int r = 0; r < c->neurons; r++)
            for (int i = 0; i < OD_THEORY_NEURONS; i++) {
                s.head[r][i] = starts[seed].head[r][i];
                for (int l = 0; l < c->features + c->neurons; l++)
                    s.w[r][l] = starts[seed].w[r][l];
            }
        for (size_t row = 0; row < rows; row++) {
            before = s;
            if (row + 1 < rows && !theory_ref_step(c, projected, c->seed + seed, (uint32_t)row, &s, &loss))
                return false;
            observe(c, d, row + 1 < rows ? &before : &s, loss, paths + (seed * rows + row) * columns);
        }
    }
    return true;
}

/* How far the parameters went, on the way of the first seed. */
static double moved(const double *paths, size_t rows, size_t columns) {
    double sum = 0;
    for (size_t i = 1; i < columns; i++)
        sum += fabs(paths[(rows - 1) * columns + i] - paths[i]);
    return sum;
}

static void check_case(od_check *k, od_theory_config *c, const char *name) {
    const bool projected = c->draw == OD_THEORY_PROJECTED;
    const int lanes = od_device_family(k->device) == OD_FAMILY_GPU ? 64 : 2 * 16; /* that run, with a seed or without */
    const double components = projected ? c->neurons : c->dimension - c->features;
    double *steps = NULL, seconds = 0;
    size_t rows = 0;
    c->level = OD_THEORY_SAMPLED;
    c->seed = UINT32_MAX - 4; /* a carry in the key */
    c->seeds = SEEDS;
    c->steps = STEPS;
    c->batch = BATCH;
    c->patches = 8;
    c->feature_patches = 3;
    c->dimension = 16;
    if (!od_check_affords(k, (double)lanes * STEPS * BATCH * 5 * components * c->neurons))
        return;
    od_check_case(k, "%s", name);
    if (!od_check_ran(k, od_theory_check(c)) || !od_check_ran(k, theory_rows(c, &steps, &rows)))
        return;
    const size_t columns = od_theory_columns(c), n = SEEDS * rows * columns;
    od_theory_state *starts = od_check_alloc(k, SEEDS * sizeof *starts);
    double *paths = od_check_alloc(k, n * sizeof *paths), *ref = od_check_alloc(k, n * sizeof *ref);
    float *words = od_check_alloc(k, n * sizeof *words);
    od_span out = od_check_output(k, n);
    if (!od_check_ready(k))
        goto out;
    for (int i = 0; i < SEEDS; i++)
        starts[i] = some_state(c, i);
    if (!reference(c, projected, starts, rows, ref)) {
        k->stopped = od_fail(OD_ERR_MEMORY, "self-test: no host memory for the theory's reference");
        goto out;
    }
    if (!od_check_ran(k, theory_sampled_on(k->device, c, starts, steps, rows, paths, &seconds)))
        goto out;
    for (size_t i = 0; i < n;
         i++) /* they came from floats; as a tensor they are compared and digested like any other */
        words[i] = (float)paths[i];
    if (od_check_ran(k, od_span_write(out, words, n))) {
        od_check_near(k, "rows", out, ref, 2e-5);
        od_check_that(k, moved(ref, rows, columns) > 0.05, "the reference moved by %g only", moved(ref, rows, columns));
    }
out:
    free(steps);
}

/* Every switch that is an option of the kernel, in few programs: they are large, and slow to compile for some drivers.
 */
void od_check_theory(od_check *k) {
    od_theory_config base, c;
    od_theory_config_default(&base);
    base.eta = 0.2;
    base.eta_head = 0.3;
    od_check_operation(k, "theory_steps");
    c = base;
    check_case(k, &c, "off-diagonal head, projected noise");
    if (!k->wide || k->stopped)
        return;
    c = base;
    c.head = OD_THEORY_FULL;
    c.draw = OD_THEORY_ALL;
    c.no_bn = c.no_stopgrad = true;
    c.degree = 2;
    c.eta = c.eta_head = 1e-3;
    check_case(k, &c, "full head, all noise, no batch norm, no stop-gradient, degree 2");
    c = base;
    c.head = OD_THEORY_NONE;
    c.detach_std = c.plain_batch = c.noise_everywhere = true;
    check_case(k, &c, "frozen head, constant deviation, plain batch, noise everywhere");
    c = base;
    c.neurons = c.features = 3;
    c.strength[2] = 1.1;
    c.no_stopgrad = true;
    check_case(k, &c, "three neurons and features, no stop-gradient");
}
