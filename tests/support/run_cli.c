#include "run_cli.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/safetensors.h"
#include "harness.h"
#include "scratch.h"

enum { MAX_ARGUMENTS = 96, ARGUMENT_BYTES = 8192 };

static int patience_s = 120;

static size_t file_limit;

const char *in_scratch(const char *format, ...) {
    static char paths[32][1024];
    static unsigned next;
    char *path = paths[next++ % 32];
    int used = snprintf(path, sizeof paths[0], "%s/", scratch_dir);
    va_list args;
    va_start(args, format);
    (void)vsnprintf(path + used, sizeof paths[0] - (size_t)used, format, args);
    va_end(args);
    return path;
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

static void pause_ms(long ms) {
    const struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    (void)nanosleep(&t, NULL);
}

/* In the child: nothing but system calls until the program runs. */
static void become(char **argv, const char *out, const char *err) {
    int null = open("/dev/null", O_RDONLY), out_fd = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int err_fd = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nothing running */
    (void)dup2(null, STDIN_FILENO);
    (void)dup2(out_fd, STDOUT_FILENO);
    (void)dup2(err_fd, STDERR_FILENO);
    if (file_limit) {
        const struct rlimit limit = {file_limit, file_limit};
        (void)setrlimit(RLIMIT_FSIZE, &limit);
    }
    (void)execv(argv[0], argv);
    _exit(127);
}

static cli_child start_v(const char *format, va_list args) {
    static unsigned serial;
    char text[ARGUMENT_BYTES], name[32], *rest = NULL, *argv[MAX_ARGUMENTS + 2];
    int argc = 0;
    const char *program = getenv("OFFDIAG_BIN");
    cr_assert_not_null(program, "OFFDIAG_BIN must name the program");
    int length = vsnprintf(text, sizeof text, format, args);
    cr_assert(length >= 0 && (size_t)length < sizeof text);
    argv[argc++] = strdup(program);
    for (char *word = strtok_r(text, " ", &rest); word && argc <= MAX_ARGUMENTS; word = strtok_r(NULL, " ", &rest))
        argv[argc++] = word;
    argv[argc] = NULL;
    cli_child child = {.serial = serial++};
    (void)snprintf(name, sizeof name, "stdout-%u", child.serial);
    const char *out = scratch_path(name);
    (void)snprintf(name, sizeof name, "stderr-%u", child.serial);
    const char *err = scratch_path(name);
    child.pid = fork();
    cr_assert_geq(child.pid, 0);
    if (child.pid == 0)
        become(argv, out, err);
    free(argv[0]);
    return child;
}

cli_child cli_start(const char *format, ...) {
    va_list args;
    va_start(args, format);
    cli_child child = start_v(format, args);
    va_end(args);
    return child;
}

cli_result cli_wait(cli_child child) {
    int state = 0;
    pid_t ended = 0;
    for (long ms = 0; ms < patience_s * 1000L && ended == 0; ms += 2) {
        ended = waitpid(child.pid, &state, WNOHANG);
        if (ended == 0)
            pause_ms(2);
    }
    if (ended == 0) {
        (void)kill(child.pid, SIGKILL);
        ended = waitpid(child.pid, &state, 0);
    }
    cr_assert_eq(ended, child.pid);
    return (cli_result){.code = WIFEXITED(state) ? WEXITSTATUS(state) : -1,
                        .signal = WIFSIGNALED(state) ? WTERMSIG(state) : 0,
                        .out = slurp(in_scratch("stdout-%u", child.serial), NULL),
                        .err = slurp(in_scratch("stderr-%u", child.serial), NULL)};
}

cli_result cli(const char *format, ...) {
    va_list args;
    va_start(args, format);
    cli_child child = start_v(format, args);
    va_end(args);
    return cli_wait(child);
}

void cli_set_patience(int seconds) {
    patience_s = seconds;
}

void cli_limit_file_size(size_t bytes) {
    file_limit = bytes;
}

void cli_expect_at(const cli_result *r, int code, const char *words, const char *file, int line) {
    char text[1024], *rest = NULL;
    (void)snprintf(text, sizeof text, "%s", words);
    cr_assert(r->code == code, "%s:%d: exit code %d (signal %d), expected %d; stderr:\n%s", file, line, r->code,
              r->signal, code, r->err);
    for (char *word = strtok_r(text, "|", &rest); word; word = strtok_r(NULL, "|", &rest))
        cr_assert(strstr(r->err, word), "%s:%d: no \"%s\" in stderr:\n%s", file, line, word, r->err);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

char *slurp(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    char *data = NULL;
    size_t size = 0, used = 0, got = 0;
    do {
        size += 65536;
        data = realloc(data, size + 1);
        cr_assert_not_null(data);
        got = fread(data + used, 1, size - used, file);
        used += got;
    } while (used == size);
    (void)fclose(file);
    data[used] = '\0';
    if (bytes)
        *bytes = used;
    return data;
}

void spew(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    cr_assert_not_null(file, "%s", path);
    cr_assert_eq(fwrite(data, 1, bytes, file), bytes);
    cr_assert_eq(fclose(file), 0);
}

json_t *read_json(const char *path) {
    json_error_t error;
    json_t *json = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    cr_assert_not_null(json, "%s: %s", path, error.text);
    return json;
}

int files_with(const char *dir, const char *part) {
    DIR *d = opendir(dir);
    int count = 0;
    if (!d)
        return 0;
    for (const struct dirent *e = readdir(d); e; e = readdir(d))
        count += strstr(e->d_name, part) != NULL;
    (void)closedir(d);
    return count;
}

char *metrics_text(const char *run, const char *event) {
    char start[64], *text = slurp(in_scratch("%s/metrics.jsonl", run), NULL), *to = text;
    if (!text)
        return strdup("");
    (void)snprintf(start, sizeof start, "{\"event\":\"%s\"", event ? event : "");
    for (char *line = text; *line;) {
        size_t length = strcspn(line, "\n");
        length += line[length] == '\n';
        if (!event || strncmp(line, start, strlen(start)) == 0) {
            memmove(to, line, length);
            to += length;
        }
        line += length;
    }
    *to = '\0';
    return text;
}

int metrics_count(const char *run, const char *event) {
    int lines = 0;
    char *text = metrics_text(run, event);
    for (const char *c = text; *c; c++)
        lines += *c == '\n';
    free(text);
    return lines;
}

json_t *metrics_line(const char *run, const char *event, int index) {
    char *text = metrics_text(run, event), *rest = NULL;
    int count = metrics_count(run, event), wanted = index < 0 ? count + index : index;
    cr_assert(wanted >= 0 && wanted < count, "%s: line %d of %d %s lines", run, index, count, event);
    char *line = strtok_r(text, "\n", &rest);
    while (wanted-- > 0)
        line = strtok_r(NULL, "\n", &rest);
    json_t *json = json_loads(line, 0, NULL);
    cr_assert_not_null(json, "%s: no JSON: %s", run, line);
    free(text);
    return json;
}

static od_safetensors *open_tensors(const char *run_or_file) {
    od_safetensors *file = NULL;
    char path[1200];
    (void)snprintf(path, sizeof path, "%s%s", run_or_file,
                   strstr(run_or_file, ".safetensors") ? "" : "/checkpoint.safetensors");
    OD_MUST(od_safetensors_open(path, &file));
    return file;
}

float *read_tensor(const char *checkpoint, const char *name, size_t *count) {
    od_safetensors *file = open_tensors(checkpoint);
    const od_tensor *t = od_safetensors_find(file, name);
    cr_assert(t && t->dtype == OD_F32, "%s has no tensor %s", checkpoint, name);
    float *values = malloc(t->bytes + 1);
    OD_MUST(od_safetensors_read(file, t, values));
    *count = t->count;
    od_safetensors_close(file);
    return values;
}

int tensors_with(const char *checkpoint, const char *prefix) {
    od_safetensors *file = open_tensors(checkpoint);
    int count = 0;
    for (size_t i = 0; i < od_safetensors_count(file); i++)
        count += strncmp(od_safetensors_at(file, i)->name, prefix, strlen(prefix)) == 0;
    od_safetensors_close(file);
    return count;
}

int differing_tensors(const char *a, const char *b, const char *prefix) {
    od_safetensors *files[2] = {open_tensors(a), open_tensors(b)};
    int different = 0, compared = 0;
    cr_assert_eq(od_safetensors_count(files[0]), od_safetensors_count(files[1]), "%s and %s: other tensors", a, b);
    for (size_t i = 0; i < od_safetensors_count(files[0]); i++) {
        const od_tensor *t = od_safetensors_at(files[0], i), *u = od_safetensors_at(files[1], i);
        cr_assert_str_eq(t->name, u->name);
        cr_assert_eq(t->bytes, u->bytes, "%s", t->name);
        if (strncmp(t->name, prefix, strlen(prefix)) != 0)
            continue;
        void *x = malloc(t->bytes + 1), *y = malloc(t->bytes + 1);
        OD_MUST(od_safetensors_read(files[0], t, x));
        OD_MUST(od_safetensors_read(files[1], u, y));
        different += memcmp(x, y, t->bytes) != 0;
        compared++;
        free(x);
        free(y);
    }
    cr_assert_gt(compared, 0, "no tensor %s* in %s", prefix, a);
    od_safetensors_close(files[0]);
    od_safetensors_close(files[1]);
    return different;
}

/* ---- the tiny run ----------------------------------------------------------------------------------------------- */

const char tiny_long[] = "--steps 300 --checkpoint-every 3 ";

static void put_be(unsigned char *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> (24 - 8 * i));
}

/* A class is a direction of stripes; phase and noise are an image's own. */
static void draw_image(unsigned char *pixels, int label, uint32_t *state) {
    double angle = label * 0.314, phase = 0;
    for (int i = 0; i < 28 * 28; i++) {
        const int x = i % 28, y = i / 28;
        *state = *state * 1664525u + 1013904223u;
        double noise = (*state >> 8) * 0x1p-24;
        if (i == 0)
            phase = 6.28 * noise;
        double wave = sin(0.7 * (cos(angle) * x + sin(angle) * y) + phase);
        pixels[i] = (unsigned char)(100 + 80 * wave + 60 * noise);
    }
}

static void write_split(const char *images_name, const char *labels_name, int n, uint32_t seed) {
    size_t bytes = 16 + (size_t)n * 28 * 28;
    unsigned char *images = malloc(bytes), *labels = malloc(8 + (size_t)n);
    const uint32_t header[] = {0x803, (uint32_t)n, 28, 28};
    for (int i = 0; i < 4; i++)
        put_be(images + 4 * i, header[i]);
    put_be(labels, 0x801);
    put_be(labels + 4, (uint32_t)n);
    for (int i = 0; i < n; i++) {
        labels[8 + i] = (unsigned char)(i % 10);
        draw_image(images + 16 + (size_t)i * 28 * 28, i % 10, &seed);
    }
    spew(in_scratch("data/%s", images_name), images, bytes);
    spew(in_scratch("data/%s", labels_name), labels, 8 + (size_t)n);
    free(images);
    free(labels);
}

void cli_setup(void) {
    od_test_use_cache();
    const char *variable = getenv("XDG_CACHE_HOME");
    char *cache = variable ? strdup(variable) : NULL;
    const char *device = getenv("OFFDIAG_TEST_DEVICE");
    scratch_init(); /* points XDG_CACHE_HOME at the scratch directory: cold builds, seconds for each child */
    if (cache)
        (void)setenv("XDG_CACHE_HOME", cache, 1);
    free(cache);
    if (device && device[0])
        (void)setenv("OFFDIAG_DEVICE", device, 1);
    else
        (void)unsetenv("OFFDIAG_DEVICE");
    (void)unsetenv("OFFDIAG_LOG");
    cr_assert_eq(mkdir(in_scratch("data"), 0700), 0);
    write_split("train-images-idx3-ubyte", "train-labels-idx1-ubyte", TINY_TRAIN, 1);
    write_split("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", TINY_TEST, 2);
}

void cli_teardown(void) {
    scratch_remove();
}

cli_child tiny_start(const char *out, const char *more) {
    return cli_start("train --dataset mnist --data %s --out %s --downsample 2 --augment grey --encoder cnn4 --width 4 "
                     "--proj-hidden 16 --proj-dim 8 --head-hidden 8 --batch %d --steps 24 --warmup 5 --lr 0.05 "
                     "--knn-k 5 %s",
                     in_scratch("data"), in_scratch("%s", out), TINY_BATCH, more);
}

double cli_accuracy(const cli_result *r) {
    json_t *document = json_loads(r->out, 0, NULL);
    const double accuracy = json_number_value(json_object_get(document, "accuracy"));
    json_decref(document);
    return accuracy;
}

cli_result tiny_train(const char *out, const char *more) {
    return cli_wait(tiny_start(out, more));
}

cli_result tiny_interrupt(const char *out, const char *more, int lines, int signal) {
    char arguments[512];
    (void)snprintf(arguments, sizeof arguments, "%s%s", tiny_long, more);
    cli_child child = tiny_start(out, arguments);
    for (int ms = 0; ms < patience_s * 1000 && metrics_count(out, NULL) < lines; ms += 2) {
        siginfo_t ended = {.si_pid = 0};
        if (waitid(P_PID, (id_t)child.pid, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid == child.pid)
            break; /* too early: the exit code tells */
        pause_ms(2);
    }
    (void)kill(child.pid, signal);
    return cli_wait(child);
}
