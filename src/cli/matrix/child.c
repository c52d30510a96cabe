/* A child process: this program once more, with a driver's settings. Whatever becomes of it, we get its lines, what it
 * said last, and how it ended. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "cli/matrix/run.h"

enum { LINE_BYTES = 1 << 20, FILE_LIMIT = 1 << 30, ARGUMENTS = OD_CHILD_WORDS + OD_SETTING_WORDS + 1 };

/* ---- signals ----------------------------------------------------------------------------------------------------- */

/* The child is a group of its own, so the terminal's Ctrl-C reaches us alone: its end is ours to bring about. */
static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    interrupted = number;
}

static void catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

/* ---- starting ---------------------------------------------------------------------------------------------------- */

typedef struct pipes {
    int out[2]; /* the child's stdout */
    int err;    /* its stderr: a file in memory, so that a chatty driver never waits for us */
} pipes;

/* "NAME=VALUE" with '@' replaced; malloc'd. */
static char *resolve(const char *variable, const char *drivers) {
    size_t room = strlen(variable) + strlen(drivers) + 1;
    char *text = malloc(room);
    const char *at = strchr(variable, '@');
    if (text && at)
        (void)snprintf(text, room, "%.*s%s%s", (int)(at - variable), variable, drivers, at + 1);
    else if (text)
        memcpy(text, variable, strlen(variable) + 1);
    return text;
}

/* In the child, which has one thread. */
static void become(const od_child *c, const pipes *p, char *const *argv, const char *drivers) {
    const struct rlimit files = {FILE_LIMIT, FILE_LIMIT}, cores = {0, 0};
    (void)setpgid(0, 0);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)setrlimit(RLIMIT_FSIZE, &files);
    (void)setrlimit(RLIMIT_CORE, &cores);
    (void)signal(SIGINT, SIG_DFL);
    (void)signal(SIGTERM, SIG_DFL);
    for (size_t i = 0; c->setting && i < OD_SETTING_WORDS && c->setting->variables[i]; i++) {
        char *variable = resolve(c->setting->variables[i], drivers);
        char *equals = variable ? strchr(variable, '=') : NULL;
        if (equals)
            *equals = '\0';
        if (!equals || setenv(variable, equals + 1, 1))
            (void)raise(SIGKILL);
        free(variable);
    }
    (void)close(STDIN_FILENO);
    (void)dup2(p->out[1], STDOUT_FILENO);
    (void)dup2(p->err, STDERR_FILENO);
    (void)execvp(argv[0], argv);
    (void)fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
    (void)execl("/bin/sh", "sh", "-c", "exit 127", (char *)NULL); /* as a shell would end */
    (void)raise(SIGKILL);
}

static od_status open_pipes(pipes *p) {
    p->out[0] = p->out[1] = -1;
    p->err = memfd_create("stderr", MFD_CLOEXEC);
    if (p->err < 0 || pipe2(p->out, O_CLOEXEC))
        return od_fail(OD_ERR_IO, "cannot start a child process: %s", strerror(errno));
    return OD_OK;
}

static void close_pipes(pipes *p) {
    const int all[] = {p->out[0], p->out[1], p->err};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i] >= 0)
            (void)close(all[i]);
}

/* ---- listening --------------------------------------------------------------------------------------------------- */

typedef struct listener {
    char *line;
    size_t used;
} listener;

/* Whole lines to the listener. A line that is too long is cut: its rest counts as a line. */
static void take(od_child *c, listener *l, const char *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (data[i] != '\n')
            l->line[l->used++] = data[i];
        if (data[i] != '\n' && l->used < LINE_BYTES - 1)
            continue;
        l->line[l->used] = '\0';
        l->used = 0;
        c->on_line(c->listener, l->line);
    }
}

/* Until the child closes its stdout, or was silent for `limit` seconds: on a busy machine a long list takes long, but
 * goes on. */
static void listen_to(od_child *c, int fd, double limit) {
    listener l = {.line = malloc(LINE_BYTES)};
    char data[65536];
    double deadline = od_now() + limit;
    while (l.line && !interrupted) {
        const double left = deadline - od_now();
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (left <= 0) {
            c->timed_out = true;
            break;
        }
        int ready = poll(&wait, 1, left < 1 ? (int)(left * 1000) + 1 : 1000);
        ssize_t got = ready > 0 ? read(fd, data, sizeof data) : -1;
        if (ready > 0 && got == 0)
            break;
        if (got > 0) {
            take(c, &l, data, (size_t)got);
            deadline = od_now() + limit;
        }
    }
    free(l.line);
}

/* Its exit, for which a process that has closed its stdout has as much time again. */
static void await(od_child *c, pid_t pid, double limit) {
    const double deadline = od_now() + limit;
    int state = 0;
    pid_t ended = 0;
    while (!c->timed_out && !interrupted && (ended = waitpid(pid, &state, WNOHANG)) == 0) {
        const struct timespec pause = {.tv_nsec = 5000000};
        c->timed_out = od_now() > deadline;
        (void)nanosleep(&pause, NULL);
    }
    (void)kill(-pid, SIGKILL); /* and what it may have started */
    if (ended != pid)
        (void)waitpid(pid, &state, 0);
    c->code = WIFEXITED(state) ? WEXITSTATUS(state) : -1;
    c->signal = WIFSIGNALED(state) ? WTERMSIG(state) : 0;
}

static void keep_said(od_child *c, int fd) {
    char text[65536];
    const off_t size = lseek(fd, 0, SEEK_END);
    ssize_t got = pread(fd, text, sizeof text - 1, 0);
    text[got > 0 ? got : 0] = '\0';
    c->unknown = c->setting && c->setting->unknown && strstr(text, c->setting->unknown);
    const off_t from = size > OD_CHILD_SAID - 1 ? size - (OD_CHILD_SAID - 1) : 0;
    got = pread(fd, c->said, OD_CHILD_SAID - 1, from);
    for (ssize_t i = 0; i < got; i++)
        if (c->said[i] != '\n' && (c->said[i] < ' ' || c->said[i] > '~'))
            c->said[i] = '?';
    while (got > 0 && (c->said[got - 1] == '\n' || c->said[got - 1] == ' '))
        got--;
    c->said[got > 0 ? got : 0] = '\0';
}

od_status od_matrix_drivers(char **path) {
    char *cache = NULL;
    od_status status = od_cache_dir(&cache);
    *path = status ? NULL : od_path_join(cache, "drivers");
    if (!status && !*path)
        status = od_fail(OD_ERR_MEMORY, "no memory for a path");
    free(cache);
    return status;
}

od_status od_child_run(od_child *c) {
    const char *argv[ARGUMENTS];
    char *drivers = NULL;
    size_t argc = 0;
    pipes p;
    for (size_t i = 0; c->setting && i < OD_SETTING_WORDS && c->setting->runner[i]; i++)
        argv[argc++] = c->setting->runner[i];
    for (size_t i = 0; i < OD_CHILD_WORDS && c->words[i]; i++)
        argv[argc++] = c->words[i];
    argv[argc] = NULL;
    if (argc == 0)
        return od_fail(OD_ERR_ARGUMENT, "a child process without a program");
    od_status status = od_matrix_drivers(&drivers);
    if (status)
        return status;
    const double began = od_now();
    const int patience = c->setting && c->setting->patience ? c->setting->patience : 1;
    c->limit = (double)c->timeout * patience;
    if ((status = open_pipes(&p)))
        goto out;
    catch_signals();
    (void)fflush(NULL); /* or the child would write it again */
    pid_t pid = fork();
    if (pid == 0)
        become(c, &p, (char *const *)argv, drivers);
    if (pid < 0) {
        status = od_fail(OD_ERR_IO, "cannot start a child process: %s", strerror(errno));
        goto out;
    }
    (void)setpgid(pid, pid);
    (void)close(p.out[1]);
    p.out[1] = -1;
    listen_to(c, p.out[0], c->limit);
    await(c, pid, c->limit);
    c->seconds = od_now() - began;
    keep_said(c, p.err);
    if (interrupted)
        status = od_fail(OD_ERR_INTERRUPTED, "interrupted");
out:
    close_pipes(&p);
    free(drivers);
    return status;
}

void od_child_outcome(const od_child *c, char *text, size_t size) {
    text[0] = '\0';
    if (c->timed_out)
        (void)snprintf(text, size, "no sign of life for %.0f s", c->limit);
    else if (c->signal)
        (void)snprintf(text, size, "killed by signal %d (%s)", c->signal, strsignal(c->signal));
    else if (c->code)
        (void)snprintf(text, size, "exit code %d", c->code);
}
