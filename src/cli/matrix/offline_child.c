/* Compiler runs: children in process groups of their own, which end in time. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/matrix/offline.h"

extern char **environ;

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

void od_tools_catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

bool od_tools_interrupted(void) {
    return interrupted;
}

/* ---- one run ----------------------------------------------------------------------------------------------------- */

static od_status start(pid_t *pid, char *const argv[], const char *output) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    int error;
    if ((error = posix_spawn_file_actions_init(&files)))
        return od_fail(OD_ERR_MEMORY, "%s: %s", argv[0], strerror(error));
    if ((error = posix_spawnattr_init(&attributes))) {
        (void)posix_spawn_file_actions_destroy(&files);
        return od_fail(OD_ERR_MEMORY, "%s: %s", argv[0], strerror(error));
    }
    /* Its own group, so that its own children end with it, and the terminal's Ctrl-C reaches us alone. */
    if (!(error = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP)) &&
        !(error = posix_spawnattr_setpgroup(&attributes, 0)) &&
        !(error = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0)) &&
        !(error = posix_spawn_file_actions_addopen(&files, 1, output, O_WRONLY | O_CREAT | O_TRUNC, 0600)) &&
        !(error = posix_spawn_file_actions_adddup2(&files, 1, 2)))
        error = posix_spawnp(pid, argv[0], &files, &attributes, argv, environ);
    (void)posix_spawnattr_destroy(&attributes);
    (void)posix_spawn_file_actions_destroy(&files);
    return error ? od_fail(OD_ERR_IO, "cannot run %s: %s", argv[0], strerror(error)) : OD_OK;
}

static double now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The child's wait status; it is killed when its time is up, or ours. */
static int wait_for(pid_t pid, double seconds, bool *late) {
    const struct timespec pause = {.tv_nsec = 4000000};
    const double end = now() + seconds;
    int status = 0;
    pid_t got;
    *late = false;
    while ((got = waitpid(pid, &status, WNOHANG)) == 0 || (got < 0 && errno == EINTR)) {
        if (now() > end || interrupted) {
            *late = !interrupted;
            (void)kill(-pid, SIGKILL);
            while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
                ;
            return status;
        }
        (void)nanosleep(&pause, NULL);
    }
    return got == pid ? status : -1;
}

/* The last bytes of a file, from a line's beginning where there is one. */
static void read_end(const char *path, char said[OD_TOOL_SAID]) {
    FILE *file = fopen(path, "rb");
    said[0] = '\0';
    if (!file)
        return;
    if (fseek(file, -(long)(OD_TOOL_SAID - 1), SEEK_END))
        rewind(file);
    size_t n = fread(said, 1, OD_TOOL_SAID - 1, file);
    (void)fclose(file);
    while (n > 0 && strchr(" \r\n\t", said[n - 1]))
        n--;
    said[n] = '\0';
    for (size_t i = 0; i < n; i++)
        if (said[i] == '\0')
            said[i] = ' ';
}

od_status od_tool_run(char *const argv[], const char *output, double seconds, char said[OD_TOOL_SAID]) {
    pid_t pid = 0;
    bool late = false;
    said[0] = '\0';
    if (interrupted)
        return od_fail(OD_ERR_INTERRUPTED, "interrupted");
    od_status status = start(&pid, argv, output);
    if (status)
        return status;
    const int code = wait_for(pid, seconds, &late);
    if (interrupted)
        return od_fail(OD_ERR_INTERRUPTED, "interrupted");
    if (code == 0)
        return OD_OK;
    read_end(output, said);
    if (late)
        return od_fail(OD_ERR_BUILD, "%s took longer than %.0f s", argv[0], seconds);
    if (WIFSIGNALED(code))
        return od_fail(OD_ERR_BUILD, "%s was ended by signal %d (%s)", argv[0], WTERMSIG(code),
                       strsignal(WTERMSIG(code)));
    return od_fail(OD_ERR_BUILD, "%s failed with code %d", argv[0], WEXITSTATUS(code));
}

/* ---- folders ----------------------------------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info;
    (void)kind;
    (void)where;
    (void)remove(path);
    return 0;
}

void od_dir_remove(const char *path) {
    (void)nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}
