#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *od_path_join(const char *dir, const char *name) {
    size_t n = strlen(dir), m = strlen(name);
    if (name[0] == '/' || n == 0)
        return strdup(name);
    char *path = malloc(n + m + 2);
    if (path)
        (void)snprintf(path, n + m + 2, "%s%s%s", dir, dir[n - 1] == '/' ? "" : "/", name);
    return path;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static od_status read_all(int fd, const char *path, char *data, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        ssize_t got = read(fd, data + at, bytes - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return od_fail(OD_ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        if (got == 0)
            return od_fail(OD_ERR_FORMAT, "%s: expected %zu bytes, found only %zu", path, bytes, at);
        at += (size_t)got;
    }
    return OD_OK;
}

od_status od_file_read(const char *path, size_t max_bytes, char **data, size_t *bytes) {
    od_status status = OD_OK;
    struct stat info;
    char *text = NULL;
    *data = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not make us wait before it is refused */
    if (fd < 0)
        return od_fail(OD_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, &info)) {
        status = od_fail(OD_ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(info.st_mode)) {
        status = od_fail(OD_ERR_FORMAT, "%s: expected a regular file", path);
        goto out;
    }
    if ((uint64_t)info.st_size > max_bytes) {
        status = od_fail(OD_ERR_FORMAT, "%s: expected at most %zu bytes, found %lld", path, max_bytes,
                         (long long)info.st_size);
        goto out;
    }
    text = malloc((size_t)info.st_size + 1);
    if (!text) {
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for %lld bytes", path, (long long)info.st_size);
        goto out;
    }
    if ((status = read_all(fd, path, text, (size_t)info.st_size)))
        goto out;
    text[info.st_size] = '\0';
    *data = text;
    if (bytes)
        *bytes = (size_t)info.st_size;
    text = NULL;
out:
    free(text);
    (void)close(fd);
    return status;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static int write_all(int fd, const char *data, size_t bytes) {
    while (bytes) {
        ssize_t put = write(fd, data, bytes);
        if (put < 0 && errno != EINTR)
            return -1;
        if (put > 0) {
            data += put;
            bytes -= (size_t)put;
        }
    }
    return 0;
}

/* The rename itself lasts only once its directory is on disk. A file system that can't sync directories is no failure.
 */
static void sync_parent(const char *path) {
    char *dir = strdup(path);
    if (!dir)
        return;
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = '\0';
    int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
    free(dir);
}

od_status od_file_write_atomic_parts(const char *path, const od_part *parts, size_t count) {
    static atomic_uint serial; /* two threads may write the same path */
    od_status status = OD_OK;
    size_t size = strlen(path) + 48;
    int fd = -1;
    char *temporary = malloc(size);
    if (!temporary)
        return od_fail(OD_ERR_MEMORY, "%s: no memory", path);
    (void)snprintf(temporary, size, "%s.tmp-%ld-%u", path, (long)getpid(), atomic_fetch_add(&serial, 1));
    fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0 && errno == EEXIST) { /* left by a process of our number that was killed */
        (void)unlink(temporary);
        fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    }
    if (fd < 0) {
        status = od_fail(OD_ERR_IO, "%s: cannot create: %s", path, strerror(errno));
        goto out;
    }
    for (size_t i = 0; i < count; i++)
        if (write_all(fd, parts[i].data, parts[i].bytes)) {
            status = od_fail(OD_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
            goto out;
        }
    int failed = fsync(fd), saved = errno; /* close even then */
    if (close(fd) && !failed) {
        failed = -1;
        saved = errno;
    }
    fd = -1;
    if (failed || rename(temporary, path)) {
        status = od_fail(OD_ERR_IO, "%s: cannot write: %s", path, strerror(failed ? saved : errno));
        (void)unlink(temporary);
        goto out;
    }
    sync_parent(path);
out:
    if (fd >= 0) {
        (void)close(fd);
        (void)unlink(temporary);
    }
    free(temporary);
    return status;
}

od_status od_file_write_atomic(const char *path, const void *data, size_t bytes) {
    return od_file_write_atomic_parts(path, &(od_part){data, bytes}, 1);
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

od_status od_dir_make(const char *path) {
    od_status status = OD_OK;
    struct stat info;
    char *part = strdup(path);
    if (!part)
        return od_fail(OD_ERR_MEMORY, "%s: no memory", path);
    for (char *at = part + (part[0] == '/'); at && *at && !status;) {
        char *slash = strchr(at, '/');
        if (slash)
            *slash = '\0';
        if (mkdir(part, 0777) && errno != EEXIST)
            status = od_fail(OD_ERR_IO, "%s: cannot make the directory %s: %s", path, part, strerror(errno));
        if (slash)
            *slash = '/';
        at = slash ? slash + 1 : NULL;
    }
    free(part);
    if (!status && (stat(path, &info) || !S_ISDIR(info.st_mode)))
        status = od_fail(OD_ERR_IO, "%s: expected a directory", path);
    return status;
}

/* Ours, a real directory, without these rights of others; made with mode 0700 where it is not there. */
static od_status check_private(const char *path, mode_t refused, const char *wanted) {
    struct stat info;
    if (mkdir(path, 0700) && errno != EEXIST)
        return od_fail(OD_ERR_IO, "%s: cannot make the directory: %s", path, strerror(errno));
    if (lstat(path, &info))
        return od_fail(OD_ERR_IO, "%s: cannot look at the directory: %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return od_fail(OD_ERR_IO, "%s: expected a directory, found %s", path,
                       S_ISLNK(info.st_mode) ? "a symbolic link" : "something else");
    if (info.st_uid != geteuid() || (info.st_mode & refused))
        return od_fail(OD_ERR_IO, "%s: expected a directory of ours %s, found owner %u and mode 0%o", path, wanted,
                       (unsigned)info.st_uid, (unsigned)(info.st_mode & 07777));
    return OD_OK;
}

/* A base directory of the XDG specification ($variable, else fallback in the home directory), and offdiag's in it. */
static od_status xdg_dir(const char *variable, const char *fallback, char **parent, char **dir) {
    const char *named = getenv(variable), *home = getenv("HOME");
    *parent = *dir = NULL;
    if (named && named[0] == '/') /* the specification says to ignore a relative one */
        *parent = strdup(named);
    else if (home && home[0] == '/')
        *parent = od_path_join(home, fallback);
    else
        return od_fail(OD_ERR_IO, "no directory for it: neither %s nor HOME is set", variable);
    *dir = *parent ? od_path_join(*parent, "offdiag") : NULL;
    if (*dir)
        return OD_OK;
    free(*parent);
    *parent = NULL;
    return od_fail(OD_ERR_MEMORY, "no memory for the name of a directory");
}

/* What lies in the cache is handed to the driver as code: closed to others. */
od_status od_cache_dir(char **path) {
    char *parent = NULL;
    od_status status = xdg_dir("XDG_CACHE_HOME", ".cache", &parent, path);
    if (!status && !(status = od_dir_make(parent)))
        status = check_private(*path, 077, "with mode 0700");
    free(parent);
    if (status) {
        free(*path);
        *path = NULL;
    }
    return status;
}

od_status od_data_dir(bool make, char **path) {
    char *parent = NULL;
    od_status status = xdg_dir("XDG_DATA_HOME", ".local/share", &parent, path);
    if (!status && make && !(status = od_dir_make(parent)))
        status = check_private(*path, 022, "that only we may write to");
    free(parent);
    if (status) {
        free(*path);
        *path = NULL;
    }
    return status;
}
