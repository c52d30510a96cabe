#include "train/tensorboard.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <math.h>
#include <png.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "tensorboard.pb-c.h"

#define PREFIX "events.out.tfevents."
#define SUFFIX ".offdiag"

enum { HEADER_BYTES = 12, FOOTER_BYTES = 4, RECORD_MAX = 64 << 20, BUCKETS = 64 };

struct od_tensorboard {
    FILE *file;
    char *path;
};

/* ---- records ---------------------------------------------------------------------------------------------------- */

/* CRC-32C (Castagnoli), and TFRecord's mask of it, so that the CRC of data that holds CRCs stays one. */
static uint32_t masked_crc(const uint8_t *data, size_t bytes) {
    static uint32_t table[256];
    for (uint32_t i = 0; i < 256 && !table[255]; i++) {
        uint32_t row = i;
        for (int bit = 0; bit < 8; bit++)
            row = (row >> 1) ^ (row & 1 ? 0x82f63b78u : 0);
        table[i] = row;
    }
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; i++)
        crc = (crc >> 8) ^ table[(crc ^ data[i]) & 255];
    crc = ~crc;
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

static void put_u32(uint8_t *to, uint32_t x) {
    x = htole32(x);
    memcpy(to, &x, sizeof x);
}

static uint32_t get_u32(const uint8_t *from) {
    uint32_t x;
    memcpy(&x, from, sizeof x);
    return le32toh(x);
}

static od_status write_event(od_tensorboard *tb, const Od__Event *event) {
    size_t bytes = od__event__get_packed_size(event);
    uint8_t *record = malloc(HEADER_BYTES + bytes + FOOTER_BYTES), *data = record + HEADER_BYTES;
    if (!record)
        return od_fail(OD_ERR_MEMORY, "%s: no memory for %zu bytes", tb->path, bytes);
    put_u32(record, (uint32_t)bytes);
    put_u32(record + 4, (uint32_t)((uint64_t)bytes >> 32));
    put_u32(record + 8, masked_crc(record, 8));
    od__event__pack(event, data);
    put_u32(data + bytes, masked_crc(data, bytes));
    size_t all = HEADER_BYTES + bytes + FOOTER_BYTES, put = fwrite(record, 1, all, tb->file);
    free(record);
    return put == all ? OD_OK : od_fail(OD_ERR_IO, "%s: cannot write: %s", tb->path, strerror(errno));
}

static double wall_time(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static Od__Event event_at(uint64_t step) {
    Od__Event event = OD__EVENT__INIT;
    event.wall_time = wall_time();
    event.has_step = true;
    event.step = (int64_t)step;
    return event;
}

static od_status write_values(od_tensorboard *tb, uint64_t step, Od__Summary__Value **values, size_t count) {
    Od__Event event = event_at(step);
    Od__Summary summary = OD__SUMMARY__INIT;
    summary.value = values;
    summary.n_value = count;
    event.summary = &summary;
    return count ? write_event(tb, &event) : OD_OK;
}

/* ---- earlier files ---------------------------------------------------------------------------------------------- */

/* The next record's step; false: the file ends there, or holds something else from there on. */
static bool read_step(FILE *file, int64_t *step) {
    uint8_t header[HEADER_BYTES];
    if (fread(header, 1, HEADER_BYTES, file) != HEADER_BYTES || get_u32(header + 8) != masked_crc(header, 8) ||
        get_u32(header + 4) || get_u32(header) > RECORD_MAX)
        return false;
    size_t bytes = get_u32(header), all = bytes + FOOTER_BYTES;
    uint8_t *data = malloc(all);
    Od__Event *event = NULL;
    if (data && fread(data, 1, all, file) == all && get_u32(data + bytes) == masked_crc(data, bytes))
        event = od__event__unpack(NULL, bytes, data);
    bool found = event != NULL;
    if (found) {
        *step = event->step;
        od__event__free_unpacked(event, NULL);
    }
    free(data);
    return found;
}

/* Records are in the order of their steps, so what a resumed run does again is a file's end. */
static od_status cut_after(const char *path, uint64_t step) {
    FILE *file = fopen(path, "r+be");
    int64_t at = 0;
    long keep = 0;
    if (!file)
        return od_fail(OD_ERR_IO, "%s: %s", path, strerror(errno));
    while (read_step(file, &at) && at <= (int64_t)step)
        keep = ftell(file);
    bool failed = keep ? ftruncate(fileno(file), keep) != 0 : unlink(path) != 0;
    od_status status = failed ? od_fail(OD_ERR_IO, "%s: cannot cut it: %s", path, strerror(errno)) : OD_OK;
    (void)fclose(file);
    return status;
}

static bool is_ours(const char *name) {
    size_t length = strlen(name), end = sizeof SUFFIX - 1;
    return strncmp(name, PREFIX, sizeof PREFIX - 1) == 0 && length > end && strcmp(name + length - end, SUFFIX) == 0;
}

/* *newest: the time in the name of the last of them, 0 without any. Readers take files in the order of their names. */
static od_status tidy(const char *dir, uint64_t step, long long *newest) {
    od_status status = OD_OK;
    DIR *d = opendir(dir);
    *newest = 0;
    if (!d)
        return od_fail(OD_ERR_IO, "%s: %s", dir, strerror(errno));
    for (const struct dirent *e = readdir(d); e && !status; e = readdir(d)) {
        if (!is_ours(e->d_name))
            continue;
        char *path = od_path_join(dir, e->d_name);
        long long time = strtoll(e->d_name + sizeof PREFIX - 1, NULL, 10);
        *newest = time > *newest ? time : *newest;
        if (!path)
            status = od_fail(OD_ERR_MEMORY, "%s: no memory for a path", dir);
        else if (step > 0)
            status = cut_after(path, step);
        else if (unlink(path))
            status = od_fail(OD_ERR_IO, "%s: cannot remove it: %s", path, strerror(errno));
        free(path);
    }
    (void)closedir(d);
    return status;
}

/* ---- a file ----------------------------------------------------------------------------------------------------- */

static od_status begin(od_tensorboard *tb, const char *dir, uint64_t step) {
    static char version[] = "brain.Event:2";
    char host[128] = "host", name[256];
    long long newest, now = (long long)time(NULL);
    od_status status = tidy(dir, step, &newest);
    if (status)
        return status;
    (void)gethostname(host, sizeof host - 1);
    (void)snprintf(name, sizeof name, PREFIX "%010lld.%s.%ld" SUFFIX, now > newest ? now : newest + 1, host,
                   (long)getpid());
    tb->path = od_path_join(dir, name);
    if (!tb->path)
        return od_fail(OD_ERR_MEMORY, "%s: no memory for a path", dir);
    tb->file = fopen(tb->path, "wbe");
    if (!tb->file)
        return od_fail(OD_ERR_IO, "%s: %s", tb->path, strerror(errno));
    Od__Event event = event_at(0);
    event.file_version = version;
    if ((status = write_event(tb, &event)) || step == 0)
        return status;
    /* A reader that shows the run already forgets the steps that come again. */
    Od__SessionLog start = OD__SESSION_LOG__INIT;
    start.status = OD__SESSION_LOG__STATUS__START;
    event = event_at(step + 1);
    event.session_log = &start;
    return write_event(tb, &event);
}

od_status od_tensorboard_open(od_tensorboard **out, const char *dir, uint64_t step) {
    od_tensorboard *tb = *out = calloc(1, sizeof *tb);
    if (!tb)
        return od_fail(OD_ERR_MEMORY, "%s: no memory", dir);
    od_status status = begin(tb, dir, step);
    if (!status)
        status = od_tensorboard_flush(tb);
    if (status) {
        od_tensorboard_close(tb);
        *out = NULL;
    }
    return status;
}

od_status od_tensorboard_flush(od_tensorboard *tb) {
    return fflush(tb->file) ? od_fail(OD_ERR_IO, "%s: cannot write: %s", tb->path, strerror(errno)) : OD_OK;
}

void od_tensorboard_close(od_tensorboard *tb) {
    if (!tb)
        return;
    if (tb->file)
        (void)fclose(tb->file);
    free(tb->path);
    free(tb);
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

enum { SCALARS_MAX = 32 };

od_status od_tensorboard_scalars(od_tensorboard *tb, uint64_t step, const od_scalar *scalars, size_t count) {
    Od__Summary__Value values[SCALARS_MAX], *list[SCALARS_MAX];
    size_t n = 0;
    if (count > SCALARS_MAX)
        return od_fail(OD_ERR_ARGUMENT, "%zu scalars in one event, %d fit", count, SCALARS_MAX);
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(scalars[i].value))
            continue;
        list[n] = &values[n];
        values[n] = (Od__Summary__Value)OD__SUMMARY__VALUE__INIT;
        values[n].tag = (char *)scalars[i].tag;
        values[n].has_simple_value = true;
        values[n++].simple_value = (float)scalars[i].value;
    }
    return write_values(tb, step, list, n);
}

od_status od_tensorboard_histogram(od_tensorboard *tb, uint64_t step, const char *tag, const float *values,
                                   size_t count) {
    double limits[BUCKETS], buckets[BUCKETS] = {0}, low = INFINITY, high = -INFINITY;
    Od__HistogramProto histogram = OD__HISTOGRAM_PROTO__INIT;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(values[i]))
            return od_fail(OD_ERR_NUMERIC, "%s: value %zu of %zu is %g", tag, i, count, values[i]);
        low = fmin(low, values[i]);
        high = fmax(high, values[i]);
        histogram.sum += values[i];
        histogram.sum_squares += (double)values[i] * values[i];
    }
    if (count == 0)
        return OD_OK;
    double width = high > low ? (high - low) / BUCKETS : fmax(fabs(high), 1) * 1e-6;
    for (int i = 0; i < BUCKETS; i++)
        limits[i] = i == BUCKETS - 1 && high > low ? high : low + (i + 1) * width;
    for (size_t i = 0; i < count; i++)
        buckets[(int)fmin((values[i] - low) / width, BUCKETS - 1)]++;
    histogram.min = low;
    histogram.max = high;
    histogram.num = (double)count;
    histogram.bucket_limit = limits;
    histogram.bucket = buckets;
    histogram.n_bucket_limit = histogram.n_bucket = BUCKETS;
    Od__Summary__Value value = OD__SUMMARY__VALUE__INIT;
    value.tag = (char *)tag;
    value.histo = &histogram;
    return write_values(tb, step, &(Od__Summary__Value *){&value}, 1);
}

od_status od_tensorboard_image(od_tensorboard *tb, uint64_t step, const char *tag, const uint8_t *rgb, int width,
                               int height) {
    png_image png = {.version = PNG_IMAGE_VERSION, .width = width, .height = height, .format = PNG_FORMAT_RGB};
    png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(png);
    uint8_t *data = malloc(bytes);
    od_status status = OD_OK;
    if (!data)
        return od_fail(OD_ERR_MEMORY, "%s: no memory for an image of %dx%d", tag, width, height);
    if (png_image_write_to_memory(&png, data, &bytes, 0, rgb, 0, NULL)) {
        Od__Summary__Image image = OD__SUMMARY__IMAGE__INIT;
        Od__Summary__Value value = OD__SUMMARY__VALUE__INIT;
        image.height = height;
        image.width = width;
        image.colorspace = 3;
        image.encoded_image_string = (ProtobufCBinaryData){bytes, data};
        value.tag = (char *)tag;
        value.image = &image;
        status = write_values(tb, step, &(Od__Summary__Value *){&value}, 1);
    } else {
        status = od_fail(OD_ERR_ARGUMENT, "%s: an image of %dx%d as PNG: %s", tag, width, height, png.message);
    }
    png_image_free(&png);
    free(data);
    return status;
}
