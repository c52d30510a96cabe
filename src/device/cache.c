/* Program binaries on disk. A file is a header (magic, format, key, length and SHA-256 of what follows) and the binary.
 * It is believed only if all of that is true; anything else is a reason to build from source, never an error. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "device/internal.h"

#define FORMAT "1" /* a new number forgets all older files */

enum { BINARY_MAX = 256 << 20 };

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

void od_cache_key(char key[OD_SHA256_TEXT], const od_device *device, const char *source, const char *options) {
    const od_device_info *info = &device->info;
    const char *const parts[] = {FORMAT,        source,       options,        info->name,
                                 info->version, info->driver, info->platform, info->platform_version};
    od_sha256_strings(key, parts, sizeof parts / sizeof *parts);
}

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
    *rejected = true;
    if (od_file_read(path, BINARY_MAX + sizeof h, &data, &size)) {
        od_log_topic("cache", "%s", od_error_message());
        goto out;
    }
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
    }
out:
    free(data);
    free(path);
    return binary;
}

void od_cache_store(const char *key, const unsigned char *binary, size_t bytes) {
    if (bytes == 0 || bytes > BINARY_MAX) {
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
    free(path);
}
