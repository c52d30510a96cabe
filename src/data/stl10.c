/* STL-10's binary version: no headers; images as three planes, each column by column; labels 1 to 10. The training
 * split is the labelled images and then the unlabeled ones. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/meter.h"
#include "data/reader.h"
#include "data/store.h"

enum { SIDE = 96, PLANE = SIDE * SIDE, PIXELS = 3 * PLANE, CHUNK = 32, CLASSES = 10, MOST_FOLDS = 100 };

typedef struct part {
    const char *images, *labels; /* file names; labels NULL: none */
    bool testing;
    long n; /* by the images' size; 0: the file is not there */
} part;

/* Size and age of a file into the key; its images are counted by its size, as there is no header. */
static od_status look_at(const od_dataset *d, part *p, char *line, size_t size) {
    char path[1200];
    struct stat info;
    (void)snprintf(path, sizeof path, "%s/%s", d->dir, p->images);
    if (stat(path, &info)) {
        if (errno == ENOENT && !p->labels) {
            od_log(OD_LOG_WARN, "%s: not there, so only labelled images are trained on", path);
            line[0] = '\0';
            return OD_OK;
        }
        return od_fail(OD_ERR_IO, "%s: %s", path, strerror(errno));
    }
    if (info.st_size < PIXELS || info.st_size % PIXELS)
        return od_fail(OD_ERR_FORMAT, "%s: expected a multiple of %d bytes, found %lld", path, PIXELS,
                       (long long)info.st_size);
    p->n = (long)(info.st_size / PIXELS);
    (void)snprintf(line, size, "%s %lld %lld.%09ld", p->images, (long long)info.st_size, (long long)info.st_mtim.tv_sec,
                   info.st_mtim.tv_nsec);
    return OD_OK;
}

/* labels (n) of a part: 1 to 10 in the file, 0 to 9 here; -1 without a file. */
static od_status read_labels(const od_dataset *d, const part *p, int32_t *labels) {
    char path[1200];
    od_stream *stream = NULL;
    uint8_t *bytes = NULL;
    for (long i = 0; i < p->n; i++)
        labels[i] = -1;
    if (!p->labels)
        return OD_OK;
    (void)snprintf(path, sizeof path, "%s/%s", d->dir, p->labels);
    od_status status = od_stream_open(path, &stream);
    if (status == OD_OK)
        status = od_stream_read_claimed(stream, (size_t)p->n, &bytes);
    if (status == OD_OK)
        status = od_stream_expect_end(stream);
    for (long i = 0; i < p->n && status == OD_OK; i++) {
        labels[i] = bytes[i] - 1;
        if (labels[i] < 0 || labels[i] >= CLASSES)
            status =
                od_fail(OD_ERR_FORMAT, "%s: expected labels 1 to %d, found %d at item %ld", path, CLASSES, bytes[i], i);
    }
    od_stream_close(stream);
    free(bytes);
    return status;
}

/* in: three planes, column by column -> out (y, x, channel). */
static void turn_image(uint8_t *out, const uint8_t *in) {
    for (int y = 0; y < SIDE; y++)
        for (int x = 0; x < SIDE; x++)
            for (int k = 0; k < 3; k++)
                *out++ = in[k * PLANE + x * SIDE + y];
}

static od_status add_part(od_store *store, const od_dataset *d, const part *p, od_meter *meter) {
    char path[1200];
    uint8_t image[PIXELS];
    od_stream *stream = NULL;
    int32_t *labels = malloc((size_t)p->n * sizeof *labels);
    uint8_t *chunk = malloc((size_t)CHUNK * PIXELS);
    od_status status = OD_OK;
    (void)snprintf(path, sizeof path, "%s/%s", d->dir, p->images);
    if (!labels || !chunk) {
        status = od_fail(OD_ERR_MEMORY, "stl10: no memory for %ld labels", p->n);
        goto out;
    }
    if ((status = read_labels(d, p, labels)) || (status = od_stream_open(path, &stream)))
        goto out;
    od_stream_expect_size(stream, (size_t)p->n * PIXELS);
    for (long first = 0; first < p->n; first += CHUNK) {
        long n = p->n - first < CHUNK ? p->n - first : CHUNK;
        od_meter_show(meter, false, "Preparing STL-10: %s, %ld of %ld images", p->images, first, p->n);
        if ((status = od_stream_read(stream, chunk, (size_t)n * PIXELS)))
            goto out;
        for (long i = 0; i < n; i++) {
            turn_image(image, chunk + i * PIXELS);
            if ((status = od_store_add(store, p->testing, image, labels[first + i])))
                goto out;
        }
    }
    status = od_stream_expect_end(stream);
out:
    od_stream_close(stream);
    free(labels);
    free(chunk);
    return status;
}

/* fold_indices.txt: a line of indices into the labelled training images for each fold, all of one length. */
static od_status read_folds(od_dataset *d, int labelled) {
    enum { MOST_BYTES = 4 << 20 };
    char path[1200], *text = NULL, *at, *end;
    od_folds *f = &d->folds;
    int in_line = 0, count = 0;
    (void)snprintf(path, sizeof path, "%s/fold_indices.txt", d->dir);
    struct stat info;
    if (stat(path, &info))
        return OD_OK; /* then --folds is not to be had */
    size_t bytes = 0;
    od_status status = od_file_read(path, MOST_BYTES, &text, &bytes);
    if (status)
        return status;
    f->indices = malloc((bytes / 2 + 1) * sizeof *f->indices); /* a digit and a blank at least for each */
    if (!f->indices) {
        free(text);
        return od_fail(OD_ERR_MEMORY, "%s: no memory for %zu bytes", path, bytes);
    }
    for (at = text; !status && *at;) {
        if (*at == ' ' || *at == '\t' || *at == '\r') {
            at++;
        } else if (*at == '\n') {
            at++;
            if (in_line && f->count && in_line != f->size)
                status = od_fail(OD_ERR_FORMAT, "%s: expected %d indices in each line, found %d in line %d", path,
                                 f->size, in_line, f->count + 1);
            else if (in_line && ++f->count > MOST_FOLDS)
                status = od_fail(OD_ERR_FORMAT, "%s: expected at most %d folds", path, MOST_FOLDS);
            else if (in_line)
                f->size = in_line;
            in_line = 0;
        } else {
            long index = strtol(at, &end, 10);
            if (end == at || index < 0 || index >= labelled) {
                status =
                    od_fail(OD_ERR_FORMAT, "%s: expected indices from 0 to %d, found '%.12s'", path, labelled - 1, at);
                break;
            }
            f->indices[count++] = (int32_t)index;
            in_line++;
            at = end;
        }
    }
    if (!status && in_line)
        status = od_fail(OD_ERR_FORMAT, "%s: the last line is cut off", path);
    free(text);
    return status;
}

od_status od_stl10_read(od_dataset *d) {
    part parts[] = {{"train_X.bin", "train_y.bin", false, 0},
                    {"unlabeled_X.bin", NULL, false, 0},
                    {"test_X.bin", "test_y.bin", true, 0}};
    enum { PARTS = sizeof parts / sizeof *parts };
    char lines[PARTS][128], key[OD_SHA256_TEXT];
    const char *strings[PARTS + 1] = {"stl10"};
    od_store *store = NULL;
    bool found = false;
    od_status status = OD_OK;
    for (int i = 0; i < PARTS; i++) {
        if ((status = look_at(d, &parts[i], lines[i], sizeof lines[i])))
            return status;
        strings[i + 1] = lines[i];
    }
    od_sha256_strings(key, strings, PARTS + 1);
    if ((status = read_folds(d, (int)parts[0].n)) || (status = od_store_open(d, key, &found)) || found)
        return status;
    if ((status = od_store_create(&store, d, key)))
        return status;
    od_meter meter = od_meter_begin(false);
    for (int i = 0; i < PARTS && !status; i++)
        if (parts[i].n)
            status = add_part(store, d, &parts[i], &meter);
    od_meter_end(&meter);
    if (status) {
        od_store_abort(store);
        return status;
    }
    return od_store_finish(store, d);
}
