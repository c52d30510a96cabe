#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "data/reader.h"

struct od_stream {
    gzFile file;
    size_t position; /* bytes after decompression */
    size_t expected; /* the whole, where it is known */
    char path[1024];
};

od_status od_stream_open(const char *path, od_stream **out) {
    *out = NULL;
    struct stat info;
    if (stat(path, &info) != 0)
        return od_fail(OD_ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return od_fail(OD_ERR_IO, "%s: expected a regular file, found %s", path,
                       S_ISDIR(info.st_mode) ? "a folder" : "something else");
    od_stream *stream = calloc(1, sizeof(*stream));
    if (!stream)
        return od_fail(OD_ERR_MEMORY, "%s: no memory to read it", path);
    stream->file = gzopen(path, "rb");
    if (!stream->file) {
        free(stream);
        return od_fail(OD_ERR_IO, "%s: %s", path, strerror(errno ? errno : ENOMEM));
    }
    gzbuffer(stream->file, 1 << 17);
    (void)snprintf(stream->path, sizeof(stream->path), "%s", path);
    *out = stream;
    return OD_OK;
}

void od_stream_close(od_stream *stream) {
    if (!stream)
        return;
    gzclose_r(stream->file);
    free(stream);
}

/* Up to `bytes` bytes; *got says how many came. An end in the middle of a gzip stream is an error here. */
static od_status read_some(od_stream *stream, void *data, size_t bytes, size_t *got) {
    *got = 0;
    while (*got < bytes) {
        size_t left = bytes - *got;
        int n = gzread(stream->file, (char *)data + *got, left > INT_MAX / 2 ? INT_MAX / 2 : (unsigned)left);
        int code = Z_OK;
        const char *text = gzerror(stream->file, &code);
        if (n < 0 || (code != Z_OK && code != Z_STREAM_END)) {
            size_t at = stream->position + *got + (n > 0 ? (size_t)n : 0);
            if (code == Z_ERRNO)
                return od_fail(OD_ERR_IO, "%s: %s at byte %zu", stream->path, strerror(errno), at);
            if (code == Z_BUF_ERROR)
                return od_fail(OD_ERR_FORMAT, "%s: expected a whole gzip stream, found its end cut off at byte %zu",
                               stream->path, at);
            return od_fail(OD_ERR_FORMAT, "%s: expected a sound gzip stream, found damage at byte %zu (%s)",
                           stream->path, at, text && *text ? text : "zlib error");
        }
        if (n == 0)
            break;
        *got += (size_t)n;
    }
    stream->position += *got;
    return OD_OK;
}

void od_stream_expect_size(od_stream *stream, size_t bytes) {
    stream->expected = bytes;
}

static od_status fail_short(const od_stream *stream, size_t expected) {
    if (stream->expected)
        expected = stream->expected;
    return od_fail(OD_ERR_FORMAT, "%s: expected %zu bytes, found only %zu", stream->path, expected, stream->position);
}

od_status od_stream_read(od_stream *stream, void *data, size_t bytes) {
    size_t start = stream->position, got;
    od_status status = read_some(stream, data, bytes, &got);
    if (status == OD_OK && got < bytes)
        return fail_short(stream, start + bytes);
    return status;
}

od_status od_stream_read_claimed(od_stream *stream, size_t bytes, uint8_t **data) {
    size_t start = stream->position, have = 0, capacity = 0;
    uint8_t *buffer = NULL;
    od_status status = OD_OK;
    *data = NULL;
    while (have < bytes) {
        size_t want = capacity ? capacity * 2 : (size_t)1 << 20;
        if (want > bytes)
            want = bytes;
        uint8_t *grown = realloc(buffer, want);
        if (!grown) {
            status = od_fail(OD_ERR_MEMORY, "%s: no memory for %zu bytes", stream->path, want);
            goto out;
        }
        buffer = grown;
        capacity = want;
        size_t got;
        status = read_some(stream, buffer + have, capacity - have, &got);
        if (status != OD_OK)
            goto out;
        have += got;
        if (have < capacity) {
            status = fail_short(stream, start + bytes);
            goto out;
        }
    }
    *data = buffer;
    buffer = NULL;
out:
    free(buffer);
    return status;
}

od_status od_stream_expect_end(od_stream *stream) {
    char extra;
    size_t end = stream->position, got;
    od_status status = read_some(stream, &extra, 1, &got);
    if (status == OD_OK && got)
        return od_fail(OD_ERR_FORMAT, "%s: expected %zu bytes, found more", stream->path, end);
    return status;
}
