/* The parts of `offdiag theory`. */
#ifndef CLI_THEORY_H
#define CLI_THEORY_H

#include <jansson.h>

#include "offdiag/theory.h"

/* A run's name: its head, and what else differs from the theory's setting. */
void theory_variant(const od_theory_config *c, char *to, size_t size);
int theory_count(const od_theory_run *run, od_theory_outcome outcome);
/* Quantile q of the finite ones of `count` values, which are sorted on the way; NaN where there is none. */
double theory_quantile(double *values, size_t count, double q);

/* Tables on stdout: the runs side by side, the phases and the seeds of the last one. */
od_status theory_print(const od_theory_run *runs, int count);
json_t *theory_json(const od_theory_run *run); /* NULL without memory */
json_t *theory_config_json(const od_theory_config *c);
od_status theory_write_csv(const char *path, const od_theory_run *run);

/* One page of HTML that loads nothing from elsewhere. */
od_status theory_write_report(const char *path, const od_theory_run *runs, int count);

/* offdiag theory sweep: the share of seeds that learn both over two parameters, "NAME" or "NAME=LIST" each. */
typedef struct theory_sweep_args {
    const char *x, *y, *report;
    bool json;
} theory_sweep_args;
od_status theory_sweep(const od_theory_config *base, const theory_sweep_args *args);

/* "2,1.25": at most `most` numbers; 0 where the text is anything else. */
int theory_numbers(const char *text, double *values, int most);

#endif
