/* The search for kernel parameters (device/tuning.h) on a device.
 *
 *   cmd_tune.c       options, the order of searches, what is kept and printed
 *   tune/search.c    one search: candidates, their check, and duels with the best so far
 *   tune/problems.c  the list of operations that a search times
 *   tune/conv.c      convolutions, tune/gemm.c matrix products: run, and compare with double */
#ifndef CLI_TUNE_TUNE_H
#define CLI_TUNE_TUNE_H

#include "device/tuning.h"
#include "offdiag/ops/conv.h"
#include "offdiag/ops/gemm.h"

/* An operation of certain sizes. */
typedef struct od_tune_problem {
    char name[96];
    void *context;
    const char *variant; /* whose parameters are searched; NULL: those of every table that the operation asks */
    od_status (*prepare)(void *context); /* after other parameters came into force */
    od_status (*run)(void *context);     /* once, and wait */
    od_status (*check)(void *context);   /* a run into spoiled memory against double: OD_ERR_NUMERIC where it differs */
    od_status (*anchor)(void *context);  /* for costly tables: something of like length that no parameter changes */
    void (*destroy)(void *context);
    double weight; /* share of the time */
} od_tune_problem;

typedef struct od_tune_limits {
    double until;               /* of od_now */
    bool (*stop)(void);         /* NULL: never before */
    double (*clock)(void);      /* what runs are timed by */
    double margin;              /* by which part of the default's time a winner must be faster */
    const od_tuning_row *known; /* tried first; NULL: none */
} od_tune_limits;

typedef struct od_tune_result {
    od_tuning_row row;         /* what won; without settings: the default stays */
    double before, after;      /* seconds, medians of turns; 0: not measured */
    int tried, unbuilt, wrong; /* candidates; those that did not build or run; those whose result was wrong */
    bool complete;             /* the search came to its own end */
} od_tune_result;

/* Search the table's parameters for a class. Fails only where the default itself fails. Leaves no row forced. */
od_status od_tune_search(od_device *device, const od_tune_problem *problem, const od_tuning_asked *what,
                         const od_tune_limits *limits, od_tune_result *result);

/* How many problems there are for the device; create number `index`. `clblast`: on a CPU device too. */
size_t od_tune_problem_count(const od_device *device, bool clblast);
od_status od_tune_problem_create(od_device *device, size_t index, od_tune_problem *out);
double od_tune_problem_weight(size_t index);

od_status od_tune_conv(od_device *device, const od_conv_shape *shape, int n, unsigned pass, od_tune_problem *out);
/* variant: of od_gemm; NULL: the one that od_gemm chooses. */
od_status od_tune_gemm(od_device *device, const od_gemm_shape *shape, const char *variant, od_tune_problem *out);

/* OD_OK if ||out - ref|| <= tolerance ||ref|| and all are finite; else OD_ERR_NUMERIC, with `what` in its message. */
od_status od_tune_near(const char *what, const float *out, const double *ref, size_t count, double tolerance);
od_status od_tune_near_float(const char *what, const float *out, const float *ref, size_t count, double tolerance);

#endif
