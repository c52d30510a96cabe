/* Tests of the whole program: it runs in a child process on a tiny data set, with what it prints and its exit code
 * captured.
 *
 *     TestSuite(train, .init = cli_setup, .fini = cli_teardown);
 *     Test(train, ...) {
 *         cli_result r = tiny_train("run", "--steps 20 --head mlp");
 *         cli_expect(&r, 0, "");                          // exit code, and words that stderr must hold
 *         r = cli("eval %s --json", in_scratch("run"));
 *
 * Arguments are separated by blanks. The program is $OFFDIAG_BIN; its device is $OFFDIAG_TEST_DEVICE, else auto. */
#ifndef TEST_RUN_CLI_H
#define TEST_RUN_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* A scratch directory for the test with the data set in data/, and the kernel cache that all tests share. */
void cli_setup(void);
void cli_teardown(void);
/* A name in the scratch directory; valid until the 32nd call after it (cli makes four). */
const char *in_scratch(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- running ---------------------------------------------------------------------------------------------------- */

typedef struct cli_child {
    pid_t pid;
    unsigned serial;
} cli_child;

typedef struct cli_result {
    int code;        /* -1: it was ended by `signal` */
    int signal;      /* 0: by itself; a child that takes longer than two minutes is killed */
    char *out, *err; /* never freed: a test's process is short */
} cli_result;

cli_child cli_start(const char *format, ...) __attribute__((format(printf, 1, 2)));
cli_result cli_wait(cli_child child);
cli_result cli(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cli_set_patience(int seconds); /* how long a child may take instead of two minutes */
/* The largest file that children started from here on may write; 0: any. A longer write fails with EFBIG. */
void cli_limit_file_size(size_t bytes);

/* Fails the test, showing stderr, unless the code is `code` and stderr holds each of the words, separated by '|'. */
#define cli_expect(result, code, words) cli_expect_at((result), (code), (words), __FILE__, __LINE__)
void cli_expect_at(const cli_result *result, int code, const char *words, const char *file, int line);

/* ---- the tiny run ----------------------------------------------------------------------------------------------- */

enum { TINY_TRAIN = 256, TINY_TEST = 64, TINY_BATCH = 16, TINY_EPOCH = TINY_TRAIN / TINY_BATCH };

/* `offdiag train` with out in the scratch directory and small settings (cnn4 of width 4 on 14x14 images); `more` comes
 * last, so that it overrides them. */
cli_child tiny_start(const char *out, const char *more);
cli_result tiny_train(const char *out, const char *more);
/* Start a run of many steps and send `signal` once its metrics hold `lines` lines. */
cli_result tiny_interrupt(const char *out, const char *more, int lines, int signal);
extern const char tiny_long[];            /* steps that are more than enough for that, and frequent checkpoints */
double cli_accuracy(const cli_result *r); /* that `eval --json` printed */

/* ---- files ------------------------------------------------------------------------------------------------------ */

char *slurp(const char *path, size_t *bytes); /* a NUL follows; NULL where there is none */
void spew(const char *path, const void *data, size_t bytes);
json_t *read_json(const char *path);
int files_with(const char *dir, const char *part); /* how many names in `dir` hold `part` */

/* Lines of a run's metrics.jsonl with this event (NULL: all), as text. */
char *metrics_text(const char *run, const char *event);
int metrics_count(const char *run, const char *event);
/* Number `index` of them (negative: from the end) as JSON. */
json_t *metrics_line(const char *run, const char *event, int index);

/* The run's or file's tensor; the test fails where there is none. */
float *read_tensor(const char *checkpoint, const char *name, size_t *count);
/* How many tensors differ in a bit between two checkpoints, which must have the same names; only those with `prefix`.
 */
int differing_tensors(const char *a, const char *b, const char *prefix);
int tensors_with(const char *checkpoint, const char *prefix);

#endif
