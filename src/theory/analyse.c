/* What happened on a path: which neuron learned what, how the head rose and fell, when each phase ended. */
#include <math.h>
#include <string.h>

#include "theory/theory.h"

/* Places in a row: loss, features (m, k), lengths (m), head (m, m). */
static double feature(const od_theory_config *c, const double *row, int j, int l) {
    return row[1 + j * c->features + l];
}

static double length(const od_theory_config *c, const double *row, int j) {
    return row[1 + c->neurons * c->features + j];
}

static double entry(const od_theory_config *c, const double *row, int j, int r) {
    return row[1 + c->neurons * (c->features + 1 + j) + r];
}

void theory_observe(const od_theory_config *c, const od_theory_state *s, double loss, double *row) {
    *row++ = loss;
    for (int j = 0; j < c->neurons; j++)
        for (int l = 0; l < c->features; l++)
            *row++ = s->w[j][l];
    for (int j = 0; j < c->neurons; j++) {
        double square = 0;
        for (int l = 0; l < c->features + c->neurons; l++)
            square += s->w[j][l] * s->w[j][l];
        *row++ = sqrt(square);
    }
    for (int j = 0; j < c->neurons; j++)
        for (int r = 0; r < c->neurons; r++)
            *row++ = s->head[j][r];
}

static bool learned(const od_theory_config *c, const double *row, int j, int l) {
    return fabs(feature(c, row, j, l)) > 0.9 * length(c, row, j);
}

static bool finite_row(const double *row, size_t columns) {
    for (size_t i = 0; i < columns; i++)
        if (!isfinite(row[i]))
            return false;
    return true;
}

static od_theory_outcome outcome_of(const od_theory_config *c, const double *row) {
    int features = 0, strong = 0, among = 0;
    if (!finite_row(row, od_theory_columns(c)))
        return OD_THEORY_DIVERGED;
    for (int l = 0; l < c->features; l++) {
        int neurons = 0;
        for (int j = 0; j < c->neurons; j++)
            neurons += learned(c, row, j, l);
        features += neurons > 0;
        strong += l == 0 ? neurons : 0;
    }
    for (int j = 0; j < c->neurons; j++) {
        double square = 0;
        for (int l = 0; l < c->features; l++)
            square += feature(c, row, j, l) * feature(c, row, j, l);
        among += sqrt(square) > 0.9 * length(c, row, j);
    }
    if (features == c->features)
        return OD_THEORY_BOTH;
    if (strong == c->neurons)
        return OD_THEORY_COLLAPSE;
    return among == c->neurons ? OD_THEORY_MIXED : OD_THEORY_UNLEARNED;
}

/* The neuron other than `but` that is the first to learn feature l, and its row; -1 where none does. */
static int first_to_learn(const od_theory_config *c, const double *path, size_t rows, int l, int but, size_t *at) {
    size_t columns = od_theory_columns(c);
    for (size_t i = 0; i < rows; i++) {
        int best = -1;
        for (int j = 0; j < c->neurons; j++)
            if (j != but && learned(c, path + i * columns, j, l) &&
                (best < 0 ||
                 fabs(feature(c, path + i * columns, j, l)) > fabs(feature(c, path + i * columns, best, l))))
                best = j;
        if (best >= 0) {
            *at = i;
            return best;
        }
    }
    return -1;
}

/* Where the head's entry of neuron b for neuron a, E_ba, passes shares of its peak. */
static void find_phases_of_head(const od_theory_config *c, const double *steps, const double *path, size_t rows,
                                od_theory_result *r) {
    size_t columns = od_theory_columns(c), peak_row = 0;
    double peak = r->peak[r->other][r->first];
    if (!(peak > 0))
        return;
    for (size_t i = 0; i < rows; i++)
        if (fabs(entry(c, path + i * columns, r->other, r->first)) >= peak) {
            peak_row = i;
            break;
        }
    r->at_peak = steps[peak_row];
    for (size_t i = 0; i < rows; i++) {
        double now = fabs(entry(c, path + i * columns, r->other, r->first));
        if (isnan(r->half_peak) && now >= 0.5 * peak)
            r->half_peak = steps[i];
        if (isnan(r->phase[1]) && now >= 0.9 * peak)
            r->phase[1] = steps[i];
        if (isnan(r->phase[3]) && i > peak_row && now < 0.2 * peak)
            r->phase[3] = steps[i];
    }
}

static int largest_peak(const od_theory_config *c, const od_theory_result *r) {
    int best = -1;
    for (int j = 0; j < c->neurons; j++)
        if (j != r->first && (best < 0 || r->peak[j][r->first] > r->peak[best][r->first]))
            best = j;
    return best;
}

void od_theory_analyse(const od_theory_config *c, const double *steps, const double *path, size_t rows,
                       od_theory_result *r) {
    size_t columns = od_theory_columns(c), at = 0;
    const double *last = path + (rows - 1) * columns;
    uint64_t seed = r->seed;
    memset(r, 0, sizeof *r);
    r->seed = seed;
    r->outcome = outcome_of(c, last);
    r->loss = last[0];
    r->first = r->other = -1;
    r->half_peak = r->at_peak = NAN;
    for (int i = 0; i < 4; i++)
        r->phase[i] = NAN;
    for (int j = 0; j < c->neurons; j++) {
        for (int l = 0; l < c->features; l++)
            r->cosine[j][l] = feature(c, last, j, l) / length(c, last, j);
        for (int i = 0; i < c->neurons; i++) {
            r->head[j][i] = entry(c, last, j, i);
            for (size_t n = 0; n < rows; n++)
                r->peak[j][i] = fmax(r->peak[j][i], fabs(entry(c, path + n * columns, j, i) - (i == j)));
        }
    }
    r->first = first_to_learn(c, path, rows, 0, -1, &at);
    if (r->first < 0)
        return;
    r->phase[0] = steps[at];
    if (c->features > 1 && (r->other = first_to_learn(c, path, rows, 1, r->first, &at)) >= 0)
        r->phase[2] = steps[at];
    else
        r->other = largest_peak(c, r);
    if (r->other >= 0)
        find_phases_of_head(c, steps, path, rows, r);
    r->rise_and_fall = isfinite(r->phase[3]);
}

void od_theory_interval(int count, int n, double *low, double *high) {
    const double z = 1.959963984540054;
    double p = (double)count / n, centre = p + z * z / (2 * n), scale = 1 + z * z / n;
    double half = z * sqrt(p * (1 - p) / n + z * z / (4. * n * n));
    *low = count == 0 ? 0 : (centre - half) / scale;
    *high = count == n ? 1 : (centre + half) / scale;
}
