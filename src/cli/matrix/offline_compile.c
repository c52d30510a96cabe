/* Compiling for all targets, two programs at a time, and judging what came out. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/matrix/offline.h"
#include "device/plan.h"

enum { REGISTER_FILE = 65536 /* NVIDIA: of a multiprocessor */ };

/* ---- judging ----------------------------------------------------------------------------------------------------- */

void od_offline_judge(od_offline_row *row) {
    const od_usage *u = &row->usage;
    const od_wanted_kernel *k = row->kernel;
    const uint64_t local = (u->local_bytes > 0 ? (uint64_t)u->local_bytes : 0) + k->local_bytes;
    char *to = row->failure;
    const size_t size = sizeof row->failure;
    to[0] = '\0';
    if (!k->by_default)
        return; /* what only --kernels ref runs may be slow */
    if (u->spill_bytes > 0)
        (void)snprintf(to, size, "%ld bytes of registers spilled to memory", u->spill_bytes);
    else if (local > OD_LOCAL_LIMIT)
        (void)snprintf(to, size, "%llu bytes of local memory, more than %d", (unsigned long long)local, OD_LOCAL_LIMIT);
    else if (k->work_group > OD_GROUP_LIMIT)
        (void)snprintf(to, size, "a work-group of %zu, more than %d", k->work_group, OD_GROUP_LIMIT);
    else if (u->max_group > 0 && k->work_group > (size_t)u->max_group)
        (void)snprintf(to, size, "a work-group of %zu, compiled for at most %ld", k->work_group, u->max_group);
    else if (row->target->vendor == OD_NVIDIA && (uint64_t)u->registers * k->work_group > REGISTER_FILE)
        (void)snprintf(to, size, "%ld registers for each of %zu work-items, more than the %d there are", u->registers,
                       k->work_group, REGISTER_FILE);
}

/* ---- compiling --------------------------------------------------------------------------------------------------- */

typedef struct job {
    size_t target, program, row; /* its first row */
} job;

typedef struct work {
    od_offline *result;
    const char *dir;
    double limit; /* seconds for a compiler run */
    bool progress;
    pthread_mutex_t lock;
    job *jobs;
    size_t job_count, next, done;
    od_status status; /* interrupted, or no memory: nothing more is begun */
    char message[512];
} work;

/* The compiler's first complaint, else the first line. */
static void first_error(const char *message, char *to, size_t size) {
    const char *error = strstr(message, "error:");
    if (!error)
        error = strstr(message, "fatal");
    const char *from = error ? error : message;
    (void)snprintf(to, size, "does not compile: %.*s", (int)strcspn(from, "\n"), from);
}

static void fill_rows(od_offline_row *rows, const od_wanted *program, const od_usage_list *usage, od_status status) {
    for (size_t i = 0; i < program->count; i++) {
        od_offline_row *row = &rows[i];
        for (size_t j = 0; j < usage->count && !row->compiled; j++)
            if (strcmp(usage->rows[j].name, row->kernel->name) == 0) {
                row->usage = usage->rows[j];
                row->compiled = true;
            }
        if (status)
            first_error(od_error_message(), row->failure, sizeof row->failure);
        else if (!row->compiled)
            (void)snprintf(row->failure, sizeof row->failure, "there is no such kernel in what the compiler made");
        else {
            if (row->target->vendor == OD_NVIDIA)
                od_occupancy_nvidia(&row->usage, atoi(row->target->name + 3), row->kernel->work_group,
                                    (uint64_t)row->usage.local_bytes + row->kernel->local_bytes);
            od_offline_judge(row);
        }
    }
}

static od_status compile(work *w, const job *j, const char *dir, double *seconds) {
    const od_offline_target *t = &w->result->targets[j->target];
    const od_wanted *program = &t->wanted.programs[j->program];
    od_usage_list usage = {NULL, 0};
    char *source = NULL;
    const double began = od_now();
    od_status status = od_program_source(program->program, &source);
    if (!status)
        status = od_offline_compile(&w->result->tools, t->target, t->ptxas, source, program->all_options, dir, w->limit,
                                    &usage);
    if (status != OD_ERR_INTERRUPTED && status != OD_ERR_MEMORY) {
        if (status)
            (void)fprintf(stderr, "%s %s.cl '%s': %s\n", t->target->name, program->program, program->options,
                          od_error_message());
        fill_rows(w->result->rows + j->row, program, &usage, status);
        status = OD_OK;
    }
    *seconds = od_now() - began;
    free(usage.rows);
    free(source);
    return status;
}

static void *run_worker(void *argument) {
    work *w = argument;
    char dir[320];
    static unsigned count;
    pthread_mutex_lock(&w->lock);
    (void)snprintf(dir, sizeof dir, "%.280s/%u", w->dir, count++ % OD_OFFLINE_WORKERS);
    while (!w->status && w->next < w->job_count) {
        const job *j = &w->jobs[w->next++];
        double seconds = 0;
        pthread_mutex_unlock(&w->lock);
        od_status status = compile(w, j, dir, &seconds);
        pthread_mutex_lock(&w->lock);
        w->result->targets[j->target].seconds += seconds;
        if (status && !w->status) {
            w->status = status;
            (void)snprintf(w->message, sizeof w->message, "%s", od_error_message());
        }
        if (w->progress)
            (void)fprintf(stderr, "\r%zu of %zu programs compiled", ++w->done, w->job_count);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static od_status list_jobs(work *w) {
    od_offline *r = w->result;
    size_t programs = 0, rows = 0;
    for (size_t t = 0; t < r->target_count; t++)
        for (size_t p = 0; p < r->targets[t].wanted.count; p++) {
            programs++;
            rows += r->targets[t].wanted.programs[p].count;
        }
    w->jobs = calloc(programs + 1, sizeof *w->jobs);
    r->rows = calloc(rows + 1, sizeof *r->rows);
    if (!w->jobs || !r->rows)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu kernels", rows);
    for (size_t t = 0; t < r->target_count; t++) {
        r->targets[t].first_row = r->row_count;
        for (size_t p = 0; p < r->targets[t].wanted.count; p++) {
            const od_wanted *program = &r->targets[t].wanted.programs[p];
            w->jobs[w->job_count++] = (job){t, p, r->row_count};
            for (size_t k = 0; k < program->count; k++)
                r->rows[r->row_count++] = (od_offline_row){
                    .target = r->targets[t].target, .program = program, .kernel = &program->kernels[k]};
        }
        r->targets[t].row_count = r->row_count - r->targets[t].first_row;
    }
    return OD_OK;
}

od_status od_offline_compile_all(od_offline *r, const char *dir, double limit) {
    work w = {.result = r, .dir = dir, .limit = limit, .progress = isatty(STDERR_FILENO)};
    pthread_t threads[OD_OFFLINE_WORKERS];
    int started = 0;
    od_status status = list_jobs(&w);
    pthread_mutex_init(&w.lock, NULL);
    if (!status) {
        while (started < OD_OFFLINE_WORKERS && !pthread_create(&threads[started], NULL, run_worker, &w))
            started++;
        if (!started)
            (void)run_worker(&w);
        for (int i = 0; i < started; i++)
            pthread_join(threads[i], NULL);
        if (w.progress)
            (void)fprintf(stderr, "\n");
        status = w.status ? od_fail(w.status, "%s", w.message) : OD_OK;
    }
    pthread_mutex_destroy(&w.lock);
    free(w.jobs);
    for (size_t t = 0; t < r->target_count; t++)
        for (size_t i = 0; i < r->targets[t].row_count; i++)
            r->targets[t].failures += r->rows[r->targets[t].first_row + i].failure[0] != '\0';
    for (size_t t = 0; t < r->target_count; t++)
        r->failures += r->targets[t].failures;
    return status;
}
