/* The comparison of prediction heads: each head with each seed, a run directory for each.
 *
 *   OUT/study.json           options, heads, seeds: the same command without options goes on from there
 *   OUT/<head>-seed<N>/      a run, and result.json once it is trained and evaluated
 * A study can be stopped anywhere: finished runs are taken as they are, a half-done one resumes from its checkpoint. */
#ifndef TRAIN_STUDY_H
#define TRAIN_STUDY_H

#include <jansson.h>

#include "offdiag/train.h"

enum { OD_STUDY_HEADS = 8, OD_STUDY_SEEDS = 1000 };

typedef struct od_study_config {
    od_train_config base; /* every run's, but for head, seed (the first one is its), out (the study's) and resume */
    od_head_kind heads[OD_STUDY_HEADS];
    int head_count, seeds;
    bool linear;       /* a linear classifier on each run's features, besides kNN */
    int linear_epochs; /* 0: the protocol's own */
    double linear_lr;  /* 0: sweep */
} od_study_config;

/* Figures of a run, in the order of od_study_figures (their names in JSON); NaN where one does not apply. */
typedef enum od_study_figure {
    OD_STUDY_KNN_BEFORE,
    OD_STUDY_KNN,
    OD_STUDY_LINEAR,
    OD_STUDY_RANK,
    OD_STUDY_Z_STD,
    OD_STUDY_OFFDIAG_PEAK, /* over the ends of epochs */
    OD_STUDY_OFFDIAG_END,
    OD_STUDY_FIGURES
} od_study_figure;
extern const char *const od_study_figures[OD_STUDY_FIGURES];

typedef enum od_study_state { OD_STUDY_WAITING, OD_STUDY_DONE, OD_STUDY_FAILED } od_study_state;
extern const char *const od_study_states[];

typedef struct od_study_run {
    od_head_kind head;
    uint64_t seed;
    char name[64], dir[1024];
    od_study_state state;
    char message[512]; /* why it failed */
    double figures[OD_STUDY_FIGURES];
} od_study_run;

typedef struct od_study {
    od_study_config config;
    od_study_run *runs; /* (head_count * seeds), by head, then seed */
    int count, failed;
} od_study;

/* Do what is not done yet. OD_OK too where runs failed (study->failed); OD_ERR_INTERRUPTED after a signal;
 * OD_ERR_USAGE where a run in OUT is of other options. Release with od_study_free. */
od_status od_study_heads(od_study *study, const od_study_config *config);
void od_study_free(od_study *study);

/* Heads, seeds and options from OUT/study.json; where there is none, *found is false and config stays as it is. */
od_status od_study_load(od_study_config *config, const char *out, bool *found);

/* Mean and sample standard deviation of the finite ones of `count` values; NaN of none, std NaN of one. */
typedef struct od_study_mean {
    int n;
    double mean, std;
} od_study_mean;
od_study_mean od_study_mean_of(const double *values, size_t count);
/* The figure over a head's finished runs. */
od_study_mean od_study_of_head(const od_study *study, int head, od_study_figure figure);
int od_study_done(const od_study *study, int head); /* finished runs of heads[head] */

#endif
