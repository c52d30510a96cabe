/* How a batch is divided over the members of a team: pure functions, the same answer in every member. */
#ifndef TRAIN_SHARES_H
#define TRAIN_SHARES_H

#include <stdbool.h>

#include "offdiag/status.h"

/* "5:3" -> weights (count). Numbers above 0, as many as members; else OD_ERR_USAGE that names --split. */
od_status od_shares_parse(double *weights, const char *text, int count);

/* shares (count), each at least 1 and at most caps[i] (NULL: any), in all n: those with the smallest largest
 * shares[i] / weights[i], so that the slowest member is done as early as can be; in proportion where that comes out
 * even. false: n < count, or the caps together are less than n. */
bool od_shares_divide(int *shares, int n, const double *weights, const int *caps, int count);

/* The first image of member i. */
int od_shares_first(const int *shares, int i);

/* (longest - shortest) / longest of seconds (count). */
double od_shares_spread(const double *seconds, int count);

/* Images a second of members at work with shares that took them `seconds`: the weights of a better division. */
void od_shares_rates(double *rates, const int *shares, const double *seconds, int count);

/* What was measured of steps of n images. */
typedef struct od_shares_measured {
    int n, count;
    const double *rates; /* (count) images/s of each one's own work while all work */
    const bool *needed;  /* (count) may not be left out */
    double together;     /* seconds of a step of all */
    double overhead;     /* of it, what no member works */
    int best;            /* the fastest member on its own ... */
    double best_alone;   /* ... and the seconds it needs; 0: not known */
} od_shares_measured;

/* pays (count): with whom a step is shortest: all, the fastest alone, or the fastest few, whose time follows from their
 * rates and the overhead. All stay where leaving some out gains less than 2 %. Returns that step's seconds. */
double od_shares_paying(bool *pays, const od_shares_measured *measured);

#endif
