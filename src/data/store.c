#include "data/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "base/file.h"
#include "base/grow.h"
#include "base/hash.h"
#include "base/log.h"

enum { HEADER_BYTES = 4096, ALIGN = 64, BUFFER_BYTES = 1 << 20, NOTES_BYTES = 4096 };
#define MAGIC "offdiag1"

typedef struct store_header {
    char magic[8];
    uint32_t byte_order; /* 1 */
    uint32_t h, w, c, n[2], skipped;
    uint32_t notes_bytes;
    float mean[3], std[3];
    uint32_t data_crc;        /* of all that follows the header */
    char key[OD_SHA256_TEXT]; /* the file's own name, in case it was renamed */
    uint32_t header_crc;      /* of the header up to here */
} store_header;

struct od_store {
    store_header header;
    char origin[64]; /* the data set's name, for messages */
    char *path;      /* NULL: in memory */
    char *temporary; /* NULL: the file has no name yet */
    int fd;
    size_t image_bytes, used; /* used: bytes in the buffer */
    uint8_t *buffer;          /* (BUFFER_BYTES) */
    int32_t *labels;          /* (capacity) */
    size_t capacity;
    uint64_t sums[3], squares[3]; /* over the training pixels of each channel */
    char notes[NOTES_BYTES];
};

/* ---- layout ----------------------------------------------------------------------------------------------------- */

static size_t align_up(size_t n) {
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

static size_t image_count(const store_header *h) {
    return (size_t)h->n[0] + h->n[1];
}

static size_t labels_at(const store_header *h) {
    return HEADER_BYTES + align_up(image_count(h) * h->h * h->w * h->c);
}

static size_t notes_at(const store_header *h) {
    return labels_at(h) + image_count(h) * sizeof(int32_t);
}

static uint32_t header_crc(const store_header *h) {
    return (uint32_t)crc32(0, (const Bytef *)h, offsetof(store_header, header_crc));
}

/* The header alone: does it describe a file of `bytes` for this key? */
static bool header_is_sound(const store_header *h, const char *key, size_t bytes) {
    enum { MOST_SIDE = 4096 };
    return memcmp(h->magic, MAGIC, sizeof h->magic) == 0 && h->byte_order == 1 && h->header_crc == header_crc(h) &&
           memcmp(h->key, key, OD_SHA256_TEXT) == 0 && h->h >= 1 && h->h <= MOST_SIDE && h->w >= 1 &&
           h->w <= MOST_SIDE && (h->c == 1 || h->c == 3) && h->n[0] >= 1 && image_count(h) <= INT_MAX &&
           h->notes_bytes < NOTES_BYTES && notes_at(h) + h->notes_bytes == bytes;
}

/* The cache's file for a key; malloc'd. */
static od_status store_path(const char *key, char **path) {
    char *cache = NULL, *folder = NULL;
    char name[OD_SHA256_TEXT + 8];
    *path = NULL;
    od_status status = od_cache_dir(&cache);
    if (status)
        return status;
    (void)snprintf(name, sizeof name, "%s.images", key);
    folder = od_path_join(cache, "datasets");
    if (folder && !(status = od_dir_make(folder)))
        *path = od_path_join(folder, name);
    if (!status && !*path)
        status = od_fail(OD_ERR_MEMORY, "no memory for a path");
    free(folder);
    free(cache);
    return status;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static void log_notes(const char *origin, const char *notes, size_t bytes, unsigned skipped) {
    for (const char *at = notes, *end = notes + bytes; at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t length = newline ? (size_t)(newline - at) : (size_t)(end - at);
        od_log(OD_LOG_WARN, "%s: skipped %.*s", origin, (int)length, at);
        at += length + 1;
    }
    if (skipped)
        od_log(OD_LOG_WARN, "%s: %u image%s that did not decode %s left out", origin, skipped, skipped == 1 ? "" : "s",
               skipped == 1 ? "is" : "are");
}

/* Map an open file of the store into the data set. check: also the check sum and the labels. */
static od_status map_store(int fd, const char *key, bool check, od_dataset *dataset) {
    struct stat info;
    store_header header;
    if (fstat(fd, &info) || info.st_size < HEADER_BYTES || pread(fd, &header, sizeof header, 0) != sizeof header)
        return od_fail(OD_ERR_FORMAT, "%s: the file of prepared images is cut off", dataset->name);
    size_t bytes = (size_t)info.st_size;
    if (!header_is_sound(&header, key, bytes))
        return od_fail(OD_ERR_FORMAT, "%s: the file of prepared images is damaged", dataset->name);
    /* private and writable: down-sampling works in place, on copies of the pages it writes */
    uint8_t *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return od_fail(OD_ERR_MEMORY, "%s: cannot map %zu bytes of prepared images: %s", dataset->name, bytes,
                       strerror(errno));
    int32_t *labels = (int32_t *)(map + labels_at(&header));
    bool sound = !check || crc32_z(0, map + HEADER_BYTES, bytes - HEADER_BYTES) == header.data_crc;
    for (size_t i = 0; sound && i < image_count(&header); i++)
        sound = labels[i] >= -1 && labels[i] < dataset->classes;
    if (!sound) {
        (void)munmap(map, bytes);
        return od_fail(OD_ERR_FORMAT, "%s: the file of prepared images is damaged", dataset->name);
    }
    size_t image = (size_t)header.h * header.w * header.c;
    dataset->map = map;
    dataset->map_bytes = bytes;
    dataset->h = (int)header.h;
    dataset->w = (int)header.w;
    dataset->c = (int)header.c;
    dataset->skipped = (int)header.skipped;
    memcpy(dataset->mean, header.mean, sizeof dataset->mean);
    memcpy(dataset->std, header.std, sizeof dataset->std);
    dataset->train = (od_split){(int)header.n[0], map + HEADER_BYTES, labels};
    dataset->test = (od_split){(int)header.n[1], map + HEADER_BYTES + header.n[0] * image, labels + header.n[0]};
    log_notes(dataset->name, (const char *)map + notes_at(&header), header.notes_bytes, header.skipped);
    return OD_OK;
}

od_status od_store_open(od_dataset *dataset, const char *key, bool *found) {
    char *path = NULL;
    *found = false;
    if (store_path(key, &path) || !path)
        return OD_OK; /* no cache: od_store_create says so */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0) {
        od_status status = map_store(fd, key, true, dataset);
        *found = status == OD_OK;
        od_log_topic("cache", "%s: %s", path, *found ? "prepared images are there" : od_error_message());
        (void)close(fd);
    }
    free(path);
    return OD_OK;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

/* A file without a name in the cache's folder, so that a process that is killed leaves nothing; where the file system
 * has no such files, one with a name of its own; without a cache, memory. */
static od_status create_file(od_store *s) {
    od_status status = store_path(s->header.key, &s->path);
    if (!status) {
        size_t size = strlen(s->path) + 16;
        s->temporary = malloc(size);
        if (!s->temporary)
            return od_fail(OD_ERR_MEMORY, "%s: no memory", s->origin);
        (void)snprintf(s->temporary, size, "%s", s->path);
        *strrchr(s->temporary, '/') = '\0';
        s->fd = open(s->temporary, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (s->fd >= 0) {
            free(s->temporary);
            s->temporary = NULL;
            return OD_OK;
        }
        (void)snprintf(s->temporary, size, "%s.tmp-XXXXXX", s->path);
        s->fd = mkostemp(s->temporary, O_CLOEXEC);
        if (s->fd >= 0)
            return OD_OK;
        status = od_fail(OD_ERR_IO, "%s: cannot create: %s", s->path, strerror(errno));
        free(s->temporary);
        free(s->path);
        s->temporary = s->path = NULL;
    }
    od_log(OD_LOG_WARN, "%s: prepared images are kept in memory, for this run only: %s", s->origin, od_error_message());
    s->fd = memfd_create("offdiag-images", MFD_CLOEXEC);
    return s->fd >= 0 ? OD_OK : status;
}

/* Give the whole file its name. */
static od_status publish(od_store *s) {
    char from[64];
    if (!s->path)
        return OD_OK;
    int failed = fsync(s->fd);
    if (!failed && s->temporary) {
        failed = rename(s->temporary, s->path);
    } else if (!failed) {
        (void)snprintf(from, sizeof from, "/proc/self/fd/%d", s->fd);
        (void)unlink(s->path); /* a damaged one */
        failed = linkat(AT_FDCWD, from, AT_FDCWD, s->path, AT_SYMLINK_FOLLOW);
        if (failed && errno == EEXIST)
            failed = 0; /* another process was faster: the same content */
    }
    if (failed)
        return od_fail(OD_ERR_IO, "%s: cannot write: %s", s->path, strerror(errno));
    free(s->temporary);
    s->temporary = NULL;
    return OD_OK;
}

static od_status write_at(od_store *s, const void *data, size_t bytes, off_t at) {
    for (const char *from = data; bytes;) {
        ssize_t put = at < 0 ? write(s->fd, from, bytes) : pwrite(s->fd, from, bytes, at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return od_fail(OD_ERR_IO, "%s: cannot write %s: %s (XDG_CACHE_HOME may name another place)", s->origin,
                           s->path ? s->path : "prepared images into memory", strerror(errno));
        from += put;
        bytes -= (size_t)put;
        at += at < 0 ? 0 : put;
    }
    return OD_OK;
}

static od_status flush_buffer(od_store *s) {
    od_status status = write_at(s, s->buffer, s->used, -1);
    s->used = 0;
    return status;
}

/* Everything behind the header goes through here. */
static od_status append(od_store *s, const void *data, size_t bytes) {
    od_status status = OD_OK;
    s->header.data_crc = (uint32_t)crc32_z(s->header.data_crc, data, bytes);
    for (const uint8_t *from = data; bytes && !status;) {
        size_t part = BUFFER_BYTES - s->used < bytes ? BUFFER_BYTES - s->used : bytes;
        memcpy(s->buffer + s->used, from, part);
        s->used += part;
        from += part;
        bytes -= part;
        if (s->used == BUFFER_BYTES)
            status = flush_buffer(s);
    }
    return status;
}

od_status od_store_create(od_store **out, const od_dataset *dataset, const char *key) {
    static const char zeros[HEADER_BYTES];
    od_status status = OD_OK;
    *out = NULL;
    od_store *s = calloc(1, sizeof *s);
    if (!s)
        return od_fail(OD_ERR_MEMORY, "%s: no memory", dataset->name);
    s->fd = -1;
    s->header = (store_header){
        .byte_order = 1, .h = (uint32_t)dataset->h, .w = (uint32_t)dataset->w, .c = (uint32_t)dataset->c};
    memcpy(s->header.magic, MAGIC, sizeof s->header.magic);
    memcpy(s->header.key, key, OD_SHA256_TEXT);
    (void)snprintf(s->origin, sizeof s->origin, "%s", dataset->name);
    s->image_bytes = (size_t)dataset->h * (size_t)dataset->w * (size_t)dataset->c;
    s->buffer = malloc(BUFFER_BYTES);
    if (!s->buffer)
        status = od_fail(OD_ERR_MEMORY, "%s: no memory", s->origin);
    else if (!(status = create_file(s)))
        status = write_at(s, zeros, sizeof zeros, -1);
    if (status)
        od_store_abort(s);
    else
        *out = s;
    return status;
}

static void count_pixels(od_store *s, const uint8_t *image) {
    size_t c = s->header.c;
    for (size_t k = 0; k < c; k++) {
        uint64_t sum = 0, squares = 0;
        for (size_t i = k; i < s->image_bytes; i += c) {
            sum += image[i];
            squares += (unsigned)image[i] * image[i];
        }
        s->sums[k] += sum;
        s->squares[k] += squares;
    }
}

od_status od_store_add(od_store *s, bool testing, const uint8_t *image, int32_t label) {
    size_t n = image_count(&s->header);
    if (n >= INT_MAX || (!testing && s->header.n[1]))
        return od_fail(OD_ERR_ARGUMENT, "%s: image %zu is too many, or of training behind those of testing", s->origin,
                       n);
    int32_t *grown = od_grow(s->labels, n, &s->capacity, sizeof *grown);
    if (!grown)
        return od_fail(OD_ERR_MEMORY, "%s: no memory for more than %zu labels", s->origin, n);
    s->labels = grown;
    s->labels[n] = label;
    s->header.n[testing]++;
    if (!testing)
        count_pixels(s, image);
    return append(s, image, s->image_bytes);
}

void od_store_skip(od_store *s, const char *line) {
    size_t length = strlen(line), used = s->header.notes_bytes;
    s->header.skipped++;
    if (length > 400)
        length = 400;
    if (used + length + 1 >= NOTES_BYTES)
        return;
    memcpy(s->notes + used, line, length);
    s->notes[used + length] = '\n';
    s->header.notes_bytes += (uint32_t)length + 1;
}

/* Means and deviations of the training pixels, as if in [0, 1]; from exact integer sums, so that nothing cancels. */
static void set_statistics(od_store *s) {
    store_header *h = &s->header;
    uint64_t n = (uint64_t)h->n[0] * h->h * h->w;
    for (int k = 0; k < 3; k++) {
        int from = h->c == 1 ? 0 : k;
        unsigned __int128 spread =
            (unsigned __int128)n * s->squares[from] - (unsigned __int128)s->sums[from] * s->sums[from];
        h->mean[k] = (float)((double)s->sums[from] / (double)n / 255);
        h->std[k] = (float)fmax(sqrt((double)spread) / (double)n / 255, 1.0 / 255); /* all in one colour */
    }
}

od_status od_store_finish(od_store *s, od_dataset *dataset) {
    static const char zeros[ALIGN];
    store_header *h = &s->header;
    size_t n = image_count(h), padding = labels_at(h) - HEADER_BYTES - n * s->image_bytes;
    od_status status = OD_OK;
    if (h->n[0] == 0) {
        status = od_fail(OD_ERR_FORMAT, "%s: no training image", s->origin);
        goto out;
    }
    set_statistics(s);
    if ((status = append(s, zeros, padding)) || (status = append(s, s->labels, n * sizeof *s->labels)) ||
        (status = append(s, s->notes, h->notes_bytes)) || (status = flush_buffer(s)))
        goto out;
    h->header_crc = header_crc(h);
    if ((status = write_at(s, h, sizeof *h, 0)))
        goto out;
    if (!(status = publish(s)))
        status = map_store(s->fd, h->key, false, dataset);
out:
    od_store_abort(s);
    return status;
}

void od_store_abort(od_store *s) {
    if (!s)
        return;
    if (s->fd >= 0)
        (void)close(s->fd);
    if (s->temporary)
        (void)unlink(s->temporary);
    free(s->temporary);
    free(s->path);
    free(s->buffer);
    free(s->labels);
    free(s);
}
