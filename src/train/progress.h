/* What a person sees on stderr while a run goes on: a bar on a terminal, a line an epoch elsewhere, nothing when quiet.
 */
#ifndef TRAIN_PROGRESS_H
#define TRAIN_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

typedef struct od_progress {
    bool quiet, terminal;
    uint64_t first, total; /* steps: where this process began, where the run ends */
    int batch;
    double started, drawn; /* monotonic seconds */
    double paused;         /* seconds spent on evaluation, not counted in images/s */
} od_progress;

void od_progress_begin(od_progress *p, bool quiet, uint64_t first, uint64_t total, int batch);
void od_progress_step(od_progress *p, uint64_t done, uint64_t epoch, double loss);
double od_progress_rate(const od_progress *p, uint64_t done); /* images/s of this process so far */
/* A line that stays, above the bar. */
void od_progress_line(od_progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
void od_progress_end(od_progress *p);

#endif
