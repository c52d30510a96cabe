/* A run directory: config.json, metrics.jsonl, checkpoint.safetensors, and a lock so that two runs never share one. */
#ifndef TRAIN_RUN_H
#define TRAIN_RUN_H

#include <jansson.h>
#include <stdio.h>

#include "offdiag/train.h"

typedef struct od_run {
    char *dir, *checkpoint, *metrics_path, *config_path;
    FILE *metrics;
    int lock;
    bool made; /* the directory, by this run, and nothing but the lock is in it yet */
} od_run;

/* Make or open config->out and lock it; temporary files of runs that were killed are removed. A directory that holds a
 * checkpoint already is refused without --resume. */
od_status od_run_open(od_run *run, const od_train_config *config);
/* A directory that was made for a run that wrote nothing goes away again. */
void od_run_close(od_run *run);

/* config.json: {"options": ..., "run": what is known of program, device and data}. */
od_status od_run_write_config(od_run *run, const od_train_config *config, json_t *about);

/* Drop the lines of metrics.jsonl past `step` (their steps will be done again) and open it for appending. */
od_status od_run_open_metrics(od_run *run, uint64_t step);
/* Append one object (the reference is taken) as a line. */
od_status od_run_log(od_run *run, json_t *line);
od_status od_run_flush(od_run *run);

#endif
