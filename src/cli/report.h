/* What `offdiag report` and `offdiag study` show of a run. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include <jansson.h>

#include "train/history.h"

/* Series of a run as its page takes them. */
json_t *report_epochs(const od_history *h);
json_t *report_spectrum(const od_spectrum *s);
/* The head's off-diagonal part from the run's checkpoint; null where it has none. */
od_status report_head(json_t **out, const od_history *h, const char *run);
json_t *report_options(const json_t *options); /* plain values only, of bounded length */
/* |offdiag| is of heads that are one matrix: NaN for others. */
double report_offdiag(const od_history *h, double x);

#endif
