/* What a run directory tells of its run, read back for reports. The files may be of a run that goes on, that was
 * killed, or of anything else: what cannot be used is left out and counted, memory stays within fixed bounds. */
#ifndef TRAIN_HISTORY_H
#define TRAIN_HISTORY_H

#include <jansson.h>
#include <stdbool.h>

#include "offdiag/status.h"

/* Figures of an epoch, in the order of od_history_keys (their names in metrics.jsonl); NaN where one is missing. */
typedef enum od_history_key {
    OD_HISTORY_EPOCH,
    OD_HISTORY_STEP,
    OD_HISTORY_LOSS,
    OD_HISTORY_KNN,
    OD_HISTORY_ONLINE,
    OD_HISTORY_RANK,
    OD_HISTORY_FEATURE_RANK,
    OD_HISTORY_Z_STD,
    OD_HISTORY_CORRELATION,
    OD_HISTORY_OFFDIAG,
    OD_HISTORY_RATE,
    OD_HISTORY_KEYS
} od_history_key;
extern const char *const od_history_keys[OD_HISTORY_KEYS];

enum { OD_HISTORY_POINTS = 1024, OD_HISTORY_SPECTRA = 64, OD_HISTORY_SPECTRUM = 256 };

typedef struct od_spectrum {
    double epoch, step;
    int count;                               /* singular values that there were */
    int kept;                                /* of them, evenly chosen */
    float log_singular[OD_HISTORY_SPECTRUM]; /* (kept), natural logarithms */
} od_spectrum;

typedef struct od_history {
    json_t *options, *about; /* config.json's "options" and "run"; NULL where it has none */
    double knn_before;       /* NaN: not measured */
    double last_step;        /* of any line */
    double offdiag_peak;     /* over all epochs; NaN without any */
    double last[OD_HISTORY_KEYS];
    double (*losses)[2];               /* (loss_count): step, mean loss of the steps up to it */
    double (*epochs)[OD_HISTORY_KEYS]; /* (epoch_count), thinned where there are very many; the last one is kept */
    od_spectrum *spectra;              /* (spectrum_count), likewise */
    size_t loss_count, epoch_count, spectrum_count;
    size_t skipped; /* lines of metrics.jsonl that could not be used */
} od_history;

/* OD_ERR_IO where there is no metrics.jsonl; without a usable config.json its parts are NULL. */
od_status od_history_read(od_history *history, const char *run);
void od_history_free(od_history *history);

/* A run's option as text; "" where it is not known. */
const char *od_history_option(const od_history *history, const char *key);

/* The head's matrix w (d, d) from the run's checkpoint, rows its inputs, columns its outputs: V of an offdiag head, W
 * of a linear one. *w is NULL for the others, and where there is no checkpoint yet. */
od_status od_history_head(float **w, int *d, const char *run);

#endif
