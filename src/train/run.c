#include "train/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "train/config.h"

static od_status lock_dir(od_run *run) {
    char *path = od_path_join(run->dir, ".lock");
    if (!path)
        return od_fail(OD_ERR_MEMORY, "no memory for a path");
    od_status status = OD_OK;
    run->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (run->lock < 0)
        status = od_fail(OD_ERR_IO, "%s: cannot write here: %s", path, strerror(errno));
    else if (flock(run->lock, LOCK_EX | LOCK_NB)) {
        status = od_fail(OD_ERR_IO, "%s: another run is writing into this directory", run->dir);
        close(run->lock);
        run->lock = -1;
    }
    free(path);
    return status;
}

/* We hold the lock, so a file that was to replace one of the run's has no writer any more. */
static void remove_leftovers(const od_run *run) {
    DIR *dir = opendir(run->dir);
    if (!dir)
        return;
    for (const struct dirent *e = readdir(dir); e; e = readdir(dir))
        if (strncmp(e->d_name, "checkpoint.safetensors.tmp-", 27) == 0 ||
            strncmp(e->d_name, "metrics.jsonl.tmp-", 18) == 0 || strncmp(e->d_name, "config.json.tmp-", 16) == 0)
            (void)unlinkat(dirfd(dir), e->d_name, 0);
    (void)closedir(dir);
}

od_status od_run_open(od_run *run, const od_train_config *config) {
    *run = (od_run){.lock = -1, .made = access(config->out, F_OK) != 0};
    od_status status = od_dir_make(config->out);
    if (status)
        return status;
    run->dir = strdup(config->out);
    run->checkpoint = od_path_join(config->out, "checkpoint.safetensors");
    run->metrics_path = od_path_join(config->out, "metrics.jsonl");
    run->config_path = od_path_join(config->out, "config.json");
    if (!run->dir || !run->checkpoint || !run->metrics_path || !run->config_path)
        status = od_fail(OD_ERR_MEMORY, "no memory for the run's paths");
    else if (!(status = lock_dir(run)) && !config->resume && access(run->checkpoint, F_OK) == 0)
        status =
            od_fail(OD_ERR_USAGE, "%s holds a run already: --resume continues it, another --out keeps it", run->dir);
    if (status)
        od_run_close(run);
    else
        remove_leftovers(run);
    return status;
}

static void remove_made(const od_run *run) {
    char *path = od_path_join(run->dir, ".lock");
    if (path && unlink(path) == 0)
        (void)rmdir(run->dir);
    free(path);
}

void od_run_close(od_run *run) {
    if (run->metrics)
        fclose(run->metrics);
    if (run->made && run->dir && run->lock >= 0)
        remove_made(run);
    if (run->lock >= 0)
        close(run->lock);
    free(run->dir);
    free(run->checkpoint);
    free(run->metrics_path);
    free(run->config_path);
    *run = (od_run){.lock = -1};
}

od_status od_run_write_config(od_run *run, const od_train_config *config, json_t *about) {
    json_t *options = od_train_config_to_json(config);
    json_t *document = options ? json_pack("{s:O, s:O}", "options", options, "run", about) : NULL;
    od_status status = document ? od_json_write_atomic(run->config_path, document)
                                : od_fail(OD_ERR_MEMORY, "no memory for config.json");
    run->made = run->made && status != OD_OK;
    json_decref(document);
    json_decref(options);
    return status;
}

/* Whether a line belongs to the first `step` steps; lines that are no JSON (cut off by a crash) do not. */
static bool keep_line(const char *line, size_t length, uint64_t step) {
    json_t *object = json_loadb(line, length, 0, NULL);
    const json_t *at = object ? json_object_get(object, "step") : NULL;
    bool keep = json_is_integer(at) && (uint64_t)json_integer_value(at) <= step;
    json_decref(object);
    return keep;
}

static od_status truncate_metrics(const od_run *run, uint64_t step) {
    char *text = NULL;
    size_t bytes = 0, kept = 0;
    od_status status = od_file_read(run->metrics_path, (size_t)1 << 32, &text, &bytes);
    if (status)
        return status;
    for (size_t at = 0; at < bytes;) {
        char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end ? (size_t)(end - (text + at)) + 1 : bytes - at;
        if (end && keep_line(text + at, length, step)) {
            memmove(text + kept, text + at, length);
            kept += length;
        }
        at += length;
    }
    if (kept != bytes)
        status = od_file_write_atomic(run->metrics_path, text, kept);
    free(text);
    return status;
}

od_status od_run_open_metrics(od_run *run, uint64_t step) {
    bool there = access(run->metrics_path, F_OK) == 0;
    od_status status = there && step > 0 ? truncate_metrics(run, step) : OD_OK;
    if (status)
        return status;
    run->metrics = fopen(run->metrics_path, step > 0 ? "ae" : "we");
    return run->metrics ? OD_OK : od_fail(OD_ERR_IO, "%s: %s", run->metrics_path, strerror(errno));
}

od_status od_run_log(od_run *run, json_t *line) {
    od_status status = OD_OK;
    if (!line)
        return od_fail(OD_ERR_MEMORY, "no memory for a line of metrics");
    if (json_dumpf(line, run->metrics, JSON_COMPACT | JSON_REAL_PRECISION(9)) || fputc('\n', run->metrics) == EOF)
        status = od_fail(OD_ERR_IO, "%s: %s", run->metrics_path, strerror(errno));
    json_decref(line);
    return status;
}

od_status od_run_flush(od_run *run) {
    return fflush(run->metrics) ? od_fail(OD_ERR_IO, "%s: %s", run->metrics_path, strerror(errno)) : OD_OK;
}
