/* Files out of a tar archive, through libarchive, which reads; every write is ours. */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "data/fetch.h"

enum { MAX_ENTRIES = 100, READ_BYTES = 1 << 18 };

/* path without a leading "./", or NULL where it leads out of `top`. */
static const char *safe_path(const char *path, const char *top) {
    size_t length = strlen(top);
    while (path && path[0] == '.' && path[1] == '/')
        path += 2;
    if (!path || strncmp(path, top, length) != 0 || (path[length] && path[length] != '/'))
        return NULL;
    for (const char *at = path; at; at = strchr(at, '/') ? strchr(at, '/') + 1 : NULL)
        if (strncmp(at, "..", 2) == 0 && (at[2] == '/' || at[2] == '\0'))
            return NULL;
    return path;
}

static od_status write_block(int fd, const char *path, const char *data, size_t bytes, la_int64_t at) {
    while (bytes) {
        ssize_t put = pwrite(fd, data, bytes, at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return od_fail(OD_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
        data += put;
        bytes -= (size_t)put;
        at += put;
    }
    return OD_OK;
}

/* The present entry's bytes into the file; *left is what all files may still take. */
static od_status copy_data(struct archive *a, const char *archive, int fd, const char *path, uint64_t *left,
                           const atomic_int *stop) {
    const void *data;
    size_t bytes;
    la_int64_t at, end = 0;
    od_status status = OD_OK;
    for (;;) {
        int code = archive_read_data_block(a, &data, &bytes, &at);
        if (code == ARCHIVE_EOF)
            break;
        if (code != ARCHIVE_OK)
            return od_fail(OD_ERR_FORMAT, "%s: broken archive: %s", archive, archive_error_string(a));
        if (stop && atomic_load(stop))
            return od_fail(OD_ERR_INTERRUPTED, "interrupted while unpacking");
        if (at < end || (uint64_t)at + bytes > *left) /* holes count as well */
            return od_fail(OD_ERR_FORMAT, "%s: unpacks to more than it should; stopped at %s", archive, path);
        if ((status = write_block(fd, path, data, bytes, at)))
            return status;
        end = at + (la_int64_t)bytes;
    }
    *left -= (uint64_t)end;
    return OD_OK;
}

static od_status unpack_file(struct archive *a, const char *archive, struct archive_entry *entry, const char *path,
                             uint64_t *left, const atomic_int *stop) {
    la_int64_t claimed = archive_entry_size_is_set(entry) ? archive_entry_size(entry) : 0;
    if (claimed < 0 || (uint64_t)claimed > *left)
        return od_fail(OD_ERR_FORMAT, "%s: claims %lld bytes for %s, more than it should unpack to", archive,
                       (long long)claimed, path);
    char *parent = strdup(path);
    if (!parent)
        return od_fail(OD_ERR_MEMORY, "no memory for a path");
    char *slash = strrchr(parent, '/');
    if (slash)
        *slash = '\0';
    od_status status = od_dir_make(parent);
    free(parent);
    if (status)
        return status;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return errno == EEXIST ? od_fail(OD_ERR_FORMAT, "%s: holds %s twice", archive, path)
                               : od_fail(OD_ERR_IO, "%s: cannot create: %s", path, strerror(errno));
    status = copy_data(a, archive, fd, path, left, stop);
    if (!status && (ftruncate(fd, claimed) || fsync(fd)))
        status = od_fail(OD_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
    if (close(fd) && !status)
        status = od_fail(OD_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
    return status;
}

static od_status unpack_entry(struct archive *a, const char *archive, struct archive_entry *entry, const char *dir,
                              const char *top, uint64_t *left, const atomic_int *stop) {
    const char *name = archive_entry_pathname(entry), *inside = safe_path(name, top);
    mode_t type = archive_entry_filetype(entry);
    if (!inside)
        return od_fail(OD_ERR_FORMAT, "%s: entry '%.100s' would be written outside %s/; nothing was unpacked", archive,
                       name ? name : "(no name)", top);
    if (archive_entry_hardlink(entry) || archive_entry_symlink(entry) || (type != AE_IFREG && type != AE_IFDIR))
        return od_fail(OD_ERR_FORMAT, "%s: entry '%.100s' is a link or a device; nothing was unpacked", archive, name);
    char *path = od_path_join(dir, inside);
    if (!path)
        return od_fail(OD_ERR_MEMORY, "no memory for a path");
    od_status status = type == AE_IFDIR ? od_dir_make(path) : unpack_file(a, archive, entry, path, left, stop);
    free(path);
    return status;
}

od_status od_unpack(const char *archive, const char *dir, const char *top, uint64_t most, const atomic_int *stop,
                    od_meter *meter) {
    struct archive *a = archive_read_new();
    struct archive_entry *entry;
    od_status status = OD_OK;
    uint64_t left = most;
    if (!a)
        return od_fail(OD_ERR_MEMORY, "%s: no memory", archive);
    (void)archive_read_support_filter_gzip(a);
    (void)archive_read_support_format_tar(a);
    if (archive_read_open_filename(a, archive, READ_BYTES) != ARCHIVE_OK) {
        status = od_fail(OD_ERR_FORMAT, "%s: broken archive: %s", archive, archive_error_string(a));
        goto out;
    }
    for (int entries = 0;; entries++) {
        int code = archive_read_next_header(a, &entry);
        if (code == ARCHIVE_EOF)
            break;
        if (code != ARCHIVE_OK && code != ARCHIVE_WARN) {
            status = od_fail(OD_ERR_FORMAT, "%s: broken archive: %s", archive, archive_error_string(a));
            goto out;
        }
        if (entries == MAX_ENTRIES) {
            status = od_fail(OD_ERR_FORMAT, "%s: more than %d entries", archive, MAX_ENTRIES);
            goto out;
        }
        od_meter_show(meter, true, "unpacking %.60s",
                      archive_entry_pathname(entry) ? archive_entry_pathname(entry) : "");
        if ((status = unpack_entry(a, archive, entry, dir, top, &left, stop)))
            goto out;
    }
out:
    (void)archive_read_free(a);
    return status;
}
