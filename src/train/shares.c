#include "train/shares.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

od_status od_shares_parse(double *weights, const char *text, int count) {
    const char *at = text;
    int found = 0;
    for (;; at++) {
        char *end = NULL;
        double weight = strtod(at, &end);
        if (end == at || !(weight > 0) || !isfinite(weight) || (*end && *end != ':'))
            return od_fail(OD_ERR_USAGE, "--split %s: expected numbers above 0 with colons between, as in 5:3", text);
        if (found < count)
            weights[found] = weight;
        found++;
        at = end;
        if (!*at)
            break;
    }
    return found == count ? OD_OK : od_fail(OD_ERR_USAGE, "--split %s: %d numbers for %d devices", text, found, count);
}

/* One image after the other to the member that would be done with it first. */
bool od_shares_divide(int *shares, int n, const double *weights, const int *caps, int count) {
    int left = n - count;
    for (int i = 0; i < count; i++) {
        shares[i] = 1;
        if (caps && caps[i] < 1)
            return false;
    }
    for (; left > 0; left--) {
        int to = -1;
        for (int i = 0; i < count; i++)
            if ((!caps || shares[i] < caps[i]) &&
                (to < 0 || (shares[i] + 1) / weights[i] < (shares[to] + 1) / weights[to]))
                to = i;
        if (to < 0)
            return false;
        shares[to]++;
    }
    return left == 0;
}

int od_shares_first(const int *shares, int i) {
    int first = 0;
    for (int j = 0; j < i; j++)
        first += shares[j];
    return first;
}

double od_shares_spread(const double *seconds, int count) {
    double shortest = seconds[0], longest = seconds[0];
    for (int i = 1; i < count; i++) {
        shortest = fmin(shortest, seconds[i]);
        longest = fmax(longest, seconds[i]);
    }
    return longest > 0 ? (longest - shortest) / longest : 0;
}

void od_shares_rates(double *rates, const int *shares, const double *seconds, int count) {
    for (int i = 0; i < count; i++)
        rates[i] = shares[i] / fmax(seconds[i], 1e-9);
}

/* Seconds of a step of those in `chosen`; infinite where there is no image for each. */
static double predict(const od_shares_measured *m, const bool *chosen, int *shares, double *weights) {
    int k = 0, only = -1;
    for (int i = 0; i < m->count; i++)
        if (chosen[i]) {
            weights[k++] = m->rates[i];
            only = i;
        }
    if (k == m->count)
        return m->together;
    if (k == 1 && only == m->best && m->best_alone > 0)
        return m->best_alone;
    if (!od_shares_divide(shares, m->n, weights, NULL, k))
        return INFINITY;
    double longest = 0;
    for (int i = 0; i < k; i++)
        longest = fmax(longest, shares[i] / weights[i]);
    return longest + (k > 1 ? m->overhead : 0);
}

double od_shares_paying(bool *pays, const od_shares_measured *m) {
    const int count = m->count;
    int *shares = malloc(count * sizeof *shares);
    double *weights = malloc(count * sizeof *weights);
    bool *chosen = malloc(count * sizeof *chosen);
    double best = m->together;
    for (int i = 0; i < count; i++)
        pays[i] = true;
    if (!shares || !weights || !chosen)
        goto out;
    memcpy(chosen, pays, count * sizeof *chosen);
    for (;;) {
        int slowest = -1;
        for (int i = 0; i < count; i++)
            if (chosen[i] && !m->needed[i] && (slowest < 0 || m->rates[i] <= m->rates[slowest]))
                slowest = i;
        int left = 0;
        for (int i = 0; i < count; i++)
            left += chosen[i];
        if (slowest < 0 || left == 1)
            break;
        chosen[slowest] = false;
        double seconds = predict(m, chosen, shares, weights);
        if (seconds < best && seconds < 0.98 * m->together) {
            best = seconds;
            memcpy(pays, chosen, count * sizeof *pays);
        }
    }
    bool alone = m->best_alone > 0 && m->best_alone < best && m->best_alone < 0.98 * m->together;
    for (int i = 0; i < count; i++)
        alone = alone && (i == m->best || !m->needed[i]);
    for (int i = 0; i < count && alone; i++)
        pays[i] = i == m->best;
    best = alone ? m->best_alone : best;
out:
    free(shares);
    free(weights);
    free(chosen);
    return best;
}
