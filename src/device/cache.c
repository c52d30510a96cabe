/* Program binaries on disk. A file is a header (magic, format, key, length and SHA-256 of what follows) and the binary.
 * It is believed only if all of that is true; anything else is a reason to build from source, never an error.
 *
 * A file's time of change is that of its last use. Above a bound on their sum ($OFFDIAG_CACHE_MIB) the files that were
 * not used for longest are removed. Other processes may read, write and remove at the same time: files appear and go
 * whole, and one that has gone was not there. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/grow.h"
#include "base/hash.h"
#include "base/log.h"
#include "device/internal.h"

#define FORMAT "2" /* a new number forgets all older files */

enum { BINARY_MAX = 256 << 20, KEY_DIGITS = OD_SHA256_TEXT - 1, BOUND_MIB = 512, ABANDONED_S = 3600 };

typedef struct header {
    char magic[8]; /* "ODCLBIN" and a NUL */
    char format[8];
    char key[64], sha256[64]; /* hexadecimal, without NUL */
    uint64_t bytes;
} header;

static header make_header(const char *key, const unsigned char *binary, size_t bytes) {
    char sha256[OD_SHA256_TEXT];
    header h = {.magic = "ODCLBIN", .format = FORMAT, .bytes = bytes};
    od_sha256(sha256, binary, bytes);
    memcpy(h.key, key, sizeof h.key);
    memcpy(h.sha256, sha256, sizeof h.sha256);
    return h;
}

/* ---- what a binary depends on ------------------------------------------------------------------------------------ */

/* A driver's variables, of which many change the code it makes (PoCL's work-group method, build flags that are added,
 * vector widths); but for those that only say where, on what or how loudly it works. */
static bool is_of_driver(const char *variable) {
    static const char *const prefixes[] = {"POCL_", "RUSTICL_", "LP_", "GALLIVM_", "CL_CONFIG_", "IGC_", "AMD_OCL_"};
    static const char *const harmless[] = {"POCL_CACHE_DIR=", "POCL_DEBUG=", "POCL_DEVICES=", "RUSTICL_ENABLE="};
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (strncmp(variable, harmless[i], strlen(harmless[i])) == 0)
            return false;
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (strncmp(variable, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    return false;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void od_cache_key(char key[OD_SHA256_TEXT], const od_device *device, const char *source, const char *options) {
    enum { PARTS = 8, VARIABLES = 64 };
    const od_device_info *info = &device->info;
    const char *parts[PARTS + VARIABLES] = {FORMAT,        source,       options,        info->name,
                                            info->version, info->driver, info->platform, info->platform_version};
    size_t count = PARTS;
    for (char **variable = environ; *variable && count < PARTS + VARIABLES; variable++)
        if (is_of_driver(*variable))
            parts[count++] = *variable;
    qsort(parts + PARTS, count - PARTS, sizeof *parts, by_text);
    od_sha256_strings(key, parts, count);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

/* malloc'd, or NULL with a note: then there is no cache. */
static char *entry_path(const char *key) {
    char name[OD_SHA256_TEXT + 8], *dir, *path;
    if (od_cache_dir(&dir)) {
        od_log_topic("cache", "%s", od_error_message());
        return NULL;
    }
    (void)snprintf(name, sizeof name, "%.64s.bin", key);
    path = od_path_join(dir, name);
    free(dir);
    return path;
}

unsigned char *od_cache_load(const char *key, size_t *bytes, bool *rejected) {
    char *path = entry_path(key), *data = NULL;
    unsigned char *binary = NULL;
    size_t size = 0;
    header h, right;
    *rejected = false;
    if (!path || access(path, F_OK))
        goto out;
    if (od_file_read(path, BINARY_MAX + sizeof h, &data, &size)) {
        *rejected = access(path, F_OK) == 0; /* else it was removed in this moment */
        od_log_topic("cache", "%s", od_error_message());
        goto out;
    }
    *rejected = true;
    if (size < sizeof h) {
        od_log_topic("cache", "%s: too short: %zu bytes", path, size);
        goto out;
    }
    memcpy(&h, data, sizeof h);
    right = make_header(key, (unsigned char *)data + sizeof h, size - sizeof h);
    if (memcmp(&h, &right, sizeof h) != 0) {
        od_log_topic("cache", "%s: damaged, or of another format or key", path);
        goto out;
    }
    *bytes = size - sizeof h;
    binary = *bytes ? malloc(*bytes) : NULL;
    if (binary) {
        memcpy(binary, data + sizeof h, *bytes);
        *rejected = false;
        (void)utimensat(AT_FDCWD, path, NULL, 0); /* used now */
    }
out:
    free(data);
    free(path);
    return binary;
}

/* ---- the bound --------------------------------------------------------------------------------------------------- */

/* Bytes. */
static uint64_t bound(void) {
    const char *text = getenv("OFFDIAG_CACHE_MIB");
    char *end = NULL;
    if (!text || !*text)
        return (uint64_t)BOUND_MIB << 20;
    errno = 0;
    const long mib = strtol(text, &end, 10);
    if (errno || *end || mib < 0 || mib > INT_MAX) {
        od_log_topic("cache", "OFFDIAG_CACHE_MIB: expected a number of MiB, found '%s'; %d it is", text, BOUND_MIB);
        return (uint64_t)BOUND_MIB << 20;
    }
    return (uint64_t)mib << 20;
}

bool od_cache_keeps(void) {
    return bound() > 0;
}

typedef struct entry {
    char name[KEY_DIGITS + 64];
    struct timespec used;
    uint64_t bytes;
} entry;

static bool earlier(struct timespec a, struct timespec b) {
    return a.tv_sec < b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec < b.tv_nsec);
}

static int by_use(const void *a, const void *b) {
    const entry *x = a, *y = b;
    return earlier(x->used, y->used) ? -1 : earlier(y->used, x->used) ? 1 : strcmp(x->name, y->name);
}

/* Ours end with ".bin", and those that are being written with more; what else lies there is none of our business. */
static bool is_ours(const char *name) {
    return strspn(name, "0123456789abcdef") == KEY_DIGITS && strncmp(name + KEY_DIGITS, ".bin", 4) == 0 &&
           strlen(name) < sizeof((entry *)0)->name;
}

/* The finished files of a directory, malloc'd, and their sum; removes those whose writer was killed. */
static entry *list_entries(DIR *dir, size_t *count, uint64_t *sum) {
    entry *list = NULL;
    size_t room = 0;
    *count = *sum = 0;
    for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
        struct stat about;
        if (!is_ours(e->d_name) || fstatat(dirfd(dir), e->d_name, &about, AT_SYMLINK_NOFOLLOW) ||
            !S_ISREG(about.st_mode))
            continue;
        if (e->d_name[KEY_DIGITS + 4]) {
            if (time(NULL) - about.st_mtim.tv_sec > ABANDONED_S)
                (void)unlinkat(dirfd(dir), e->d_name, 0);
            continue;
        }
        entry *longer = od_grow(list, *count, &room, sizeof *longer);
        if (!longer)
            break;
        list = longer;
        entry *new = &list[(*count)++];
        *new = (entry){.used = about.st_mtim, .bytes = (uint64_t)about.st_size};
        (void)snprintf(new->name, sizeof new->name, "%s", e->d_name);
        *sum += new->bytes;
    }
    return list;
}

/* Remove what was not used for longest, until an eighth of the bound is free: not again at the next file. */
static void prune(const char *path, uint64_t most) {
    char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, (size_t)(slash - path)) : NULL;
    DIR *dir = folder ? opendir(folder) : NULL;
    size_t count = 0, removed = 0;
    uint64_t sum = 0;
    entry *list = dir ? list_entries(dir, &count, &sum) : NULL;
    if (sum > most) {
        qsort(list, count, sizeof *list, by_use);
        for (size_t i = 0; i < count && sum > most - most / 8; i++) {
            struct stat about;
            const bool there = fstatat(dirfd(dir), list[i].name, &about, AT_SYMLINK_NOFOLLOW) == 0;
            if (strcmp(list[i].name, slash + 1) == 0 || (there && earlier(list[i].used, about.st_mtim)))
                continue; /* the new one, or used since we looked */
            if (there && unlinkat(dirfd(dir), list[i].name, 0) == 0)
                removed++;
            sum -= list[i].bytes;
        }
        od_log_topic("cache", "%s: %zu of %zu files removed, %.1f MiB left", folder, removed, count,
                     (double)sum / (1 << 20));
    }
    free(list);
    if (dir)
        (void)closedir(dir);
    free(folder);
}

void od_cache_store(const char *key, const unsigned char *binary, size_t bytes) {
    const uint64_t most = bound();
    if (bytes == 0 || bytes > BINARY_MAX || bytes + sizeof(header) > most) {
        od_log_topic("cache", "a binary of %zu bytes is not kept", bytes);
        return;
    }
    char *path = entry_path(key);
    if (!path)
        return;
    header h = make_header(key, binary, bytes);
    od_part parts[] = {{&h, sizeof h}, {binary, bytes}};
    if (od_file_write_atomic_parts(path, parts, 2))
        od_log_topic("cache", "%s", od_error_message());
    prune(path, most);
    free(path);
}
