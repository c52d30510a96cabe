/* The self-test: each operation's kernels against known answers, computed on the host in double precision, and against
 * themselves: every case runs a second time, and must give the same bits.
 *
 * An operation's cases are one function. It names the operation, opens a case, makes its tensors, runs the operation
 * and says what must come out; the runner does the rest and keeps a row for each operation and kernel family:
 *
 *     od_check_operation(k, "relu_forward");
 *     od_check_case(k, "%zu elements", n);
 *     float *x = od_check_normals(k, n, 0), *y = od_check_alloc(k, n * sizeof *y);
 *     od_span xs = od_check_input(k, x, n), ys = od_check_output(k, n);
 *     if (!od_check_ready(k))
 *         return;                                      // no memory: the runner has noted it
 *     for (...) y[i] = ...;
 *     if (od_check_ran(k, od_relu_forward(k->device, ys, xs, n)))
 *         od_check_words(k, "y", ys, y);
 *
 * Every tensor lies between guard bands of NaN, and outputs start as NaN. The cases run twice, at odd and at aligned
 * offsets, since kernels with aligned vectors refuse the former. */
#ifndef CLI_SELFTEST_RUNNER_H
#define CLI_SELFTEST_RUNNER_H

#include "offdiag/device.h"

enum { OD_CHECK_ROWS = 192, OD_CHECK_TENSORS = 16, OD_CHECK_BLOCKS = 64, OD_CHECK_TOLD = 3 };

typedef struct od_check_row {
    const char *operation;
    od_family family;
    unsigned cases, failed;
    double worst;      /* the largest ||out - ref|| / ||ref||; infinity: not finite, or bits that differ */
    char skipped[200]; /* why nothing ran */
} od_check_row;

typedef struct od_check_tensor {
    od_span span;
    size_t elements;
    const void *words; /* an input's content, which must stay */
} od_check_tensor;

/* What a case left in its tensors when it ran first. */
typedef struct od_check_first {
    uint64_t digest;
    bool bad;
} od_check_first;

typedef struct od_check od_check;
struct od_check {
    od_device *device; /* opened for the family under test */
    bool wide;         /* the long case lists: more shapes, and each variant that takes them */
    double work_limit; /* multiply-adds of a case, about; 0: any number */
    /* Told of each case as it begins and as it has ended; each may be NULL. */
    void (*on_case)(od_check *k);
    void (*on_result)(od_check *k);
    const char *(*complaint)(od_check *k); /* of a driver about what the case did; it fails then. NULL: none */
    void *listener;

    od_check_row rows[OD_CHECK_ROWS];
    size_t row_count;
    unsigned cases, failed;
    char told[OD_CHECK_TOLD][480]; /* the first failures in words */
    od_status stopped;             /* no host memory: nothing more can be tested */

    od_check_row *row; /* of the open case, and what is known about it */
    bool aligned, open, bad;
    bool again;        /* the second run of a list: only what differs from the first counts */
    bool counted;      /* bad, and not so already in the first run */
    char why[240];     /* bad: the reason */
    double case_worst; /* as the row's */
    unsigned verdicts;
    char name[120];
    od_check_first *firsts; /* of the list that runs */
    size_t first_count, first_room, first_at;
    od_check_tensor tensors[OD_CHECK_TENSORS];
    size_t tensor_count;
    void *blocks[OD_CHECK_BLOCKS];
    size_t block_count;
};

typedef struct od_check_group {
    const char *name;
    void (*run)(od_check *k);
} od_check_group;
enum { OD_CHECK_GROUPS = 32 };                 /* at most */
extern const od_check_group od_check_groups[]; /* all operations; ends with a NULL name */

/* A group on the device of a family, at both kinds of offset, each twice. The runner starts zeroed and adds up over
 * groups and families; od_check_free at the end. Fails only when it can't go on; wrong results are counted. */
od_status od_check_run(od_check *k, od_device *device, const od_check_group *group);
od_status od_check_family(od_check *k, od_device *device); /* all groups */
void od_check_free(od_check *k);
/* OD_OK, or OD_ERR_NUMERIC with the first failures. */
od_status od_check_verdict(const od_check *k, const od_device_info *info);
void od_check_begin(od_check *k, od_device *device, bool aligned);
void od_check_end(od_check *k); /* of the open case: guard bands and inputs; frees its memory */

void od_check_operation(od_check *k, const char *operation); /* a literal */
void od_check_skip(od_check *k, const char *reason);         /* nothing of this operation runs */
void od_check_case(od_check *k, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Host memory until the case ends, zeroed; NULL when there is none. Data follow from the case's name and `stream`. */
void *od_check_alloc(od_check *k, size_t bytes);
float *od_check_normals(od_check *k, size_t elements, uint64_t stream);
float *od_check_uniforms(od_check *k, size_t elements, uint64_t stream); /* [0, 1) */

/* Tensors until the case ends; elements and words are of 4 bytes. */
od_span od_check_input(od_check *k, const void *words, size_t elements); /* must not change; read until the case ends */
od_span od_check_inout(od_check *k, const void *words, size_t elements);
od_span od_check_output(od_check *k, size_t elements);

bool od_check_affords(const od_check *k, double work); /* within work_limit: else leave the case out */
bool od_check_ready(const od_check *k);                /* memory and tensors are all there */
bool od_check_ran(od_check *k, od_status status);
void od_check_that(od_check *k, bool holds, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Relative error within `tolerance`, no element off by more than 32 tolerance max|ref|, all finite. */
void od_check_near(od_check *k, const char *name, od_span tensor, const double *ref, double tolerance);
void od_check_words(od_check *k, const char *name, od_span tensor, const void *words); /* bit by bit */

/* The operations. */
void od_check_conv(od_check *k);
void od_check_dense(od_check *k);
void od_check_norm(od_check *k);
void od_check_pointwise(od_check *k);
void od_check_pool(od_check *k);
void od_check_loss(od_check *k);
void od_check_optim(od_check *k);
void od_check_augment(od_check *k);
void od_check_knn(od_check *k);
void od_check_theory(od_check *k);

#endif
