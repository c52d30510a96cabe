/* Runs over seeds: the expected level on the processors of the host, the sampled level on a device. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "theory/theory.h"

uint64_t theory_next_row(uint64_t step, int rows, uint64_t last) {
    uint64_t next = step + theory_stride(step, rows);
    return next < last ? next : last;
}

od_status theory_rows(const od_theory_config *c, double **steps, size_t *rows) {
    size_t count = 1, i = 0;
    for (uint64_t step = 0; step < c->steps; step = theory_next_row(step, c->rows, c->steps))
        count++;
    *steps = malloc(count * sizeof **steps);
    if (!*steps)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu observations", count);
    for (uint64_t step = 0; i < count - 1; step = theory_next_row(step, c->rows, c->steps))
        (*steps)[i++] = (double)step;
    (*steps)[i] = (double)c->steps;
    *rows = count;
    return OD_OK;
}

/* Workers take seeds one by one. */
typedef struct work {
    od_theory_run *run;
    const od_theory_state *starts;
    atomic_int next;
    atomic_bool failed;
} work;

static void *take_seeds(void *argument) {
    work *w = argument;
    od_theory_run *run = w->run;
    size_t size = run->rows * run->columns;
    double *own = run->paths ? NULL : malloc(size * sizeof *own);
    if (!run->paths && !own)
        w->failed = true;
    for (int i; !w->failed && (i = atomic_fetch_add(&w->next, 1)) < run->config.seeds;) {
        double *path = run->paths ? run->paths + (size_t)i * size : own;
        theory_expected(&run->config, &w->starts[i], run->steps, run->rows, path);
        od_theory_analyse(&run->config, run->steps, path, run->rows, &run->results[i]);
    }
    free(own);
    return NULL;
}

static od_status run_expected(od_theory_run *run, const od_theory_state *starts) {
    enum { MOST = 256 };
    pthread_t threads[MOST];
    work w = {.run = run, .starts = starts};
    long processors = run->config.threads > 0 ? run->config.threads : sysconf(_SC_NPROCESSORS_ONLN);
    int started = 0;
    while (started < processors - 1 && started < MOST && started < run->config.seeds - 1 &&
           pthread_create(&threads[started], NULL, take_seeds, &w) == 0)
        started++;
    take_seeds(&w);
    for (int i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
    return w.failed ? od_fail(OD_ERR_MEMORY, "no memory for a path of %zu observations", run->rows) : OD_OK;
}

static double now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static od_status run_sampled(od_theory_run *run, const od_theory_state *starts, bool keep) {
    const od_theory_config *c = &run->config;
    size_t size = run->rows * run->columns;
    od_status status = theory_sampled(c, starts, run->steps, run->rows, run->paths, &run->seconds, run->device);
    for (int i = 0; i < c->seeds && !status; i++)
        od_theory_analyse(c, run->steps, run->paths + (size_t)i * size, run->rows, &run->results[i]);
    if (!keep) {
        free(run->paths);
        run->paths = NULL;
    }
    return status;
}

od_status od_theory_train(const od_theory_config *config, const od_theory_state *starts, bool keep_paths,
                          od_theory_run *run) {
    od_theory_state *drawn = NULL;
    memset(run, 0, sizeof *run);
    run->config = *config;
    const od_theory_config *c = &run->config;
    od_status status = od_theory_check(&run->config);
    if (status || (status = theory_rows(c, &run->steps, &run->rows)))
        goto out;
    size_t seeds = (size_t)c->seeds;
    run->columns = od_theory_columns(c);
    run->results = calloc(seeds, sizeof *run->results);
    drawn = malloc(seeds * sizeof *drawn);
    if (keep_paths || c->level == OD_THEORY_SAMPLED)
        run->paths = calloc(seeds, run->rows * run->columns * sizeof *run->paths);
    if (!run->results || !drawn || (!run->paths && (keep_paths || c->level == OD_THEORY_SAMPLED))) {
        status = od_fail(OD_ERR_MEMORY, "no memory for %zu seeds with %zu observations each; --rows N takes fewer",
                         seeds, run->rows);
        goto out;
    }
    for (size_t i = 0; i < seeds && !status; i++) {
        run->results[i].seed = c->seed + i;
        if (starts)
            drawn[i] = starts[i];
        else
            status = od_theory_start(c, c->seed + i, &drawn[i]);
    }
    if (status)
        goto out;
    if (c->level == OD_THEORY_SAMPLED) {
        status = run_sampled(run, drawn, keep_paths);
    } else {
        double began = now();
        status = run_expected(run, drawn);
        run->seconds = now() - began;
    }
out:
    free(drawn);
    if (status)
        od_theory_run_free(run);
    return status;
}

void od_theory_run_free(od_theory_run *run) {
    free(run->steps);
    free(run->paths);
    free(run->results);
    run->steps = run->paths = NULL;
    run->results = NULL;
}
