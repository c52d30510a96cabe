/* The binary version of CIFAR: records without any header, so that the size alone tells a cut file. */
#include <stdlib.h>

#include "data/reader.h"

enum { SIDE = 32, PLANE = SIDE * SIDE, PIXELS = 3 * PLANE, CHUNK = 64 };

od_status od_cifar_read(const char *path, int label_bytes, int which, int classes, int records, od_split *out) {
    const size_t record = (size_t)label_bytes + PIXELS, total = (size_t)out->n + (size_t)records;
    od_stream *stream = NULL;
    uint8_t *chunk = malloc(CHUNK * record);
    uint8_t *images = realloc(out->images, total * PIXELS);
    if (images)
        out->images = images;
    int32_t *labels = realloc(out->labels, total * sizeof(*labels));
    if (labels)
        out->labels = labels;
    od_status status = OD_OK;
    if (!chunk || !images || !labels) {
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for %d images", path, records);
        goto out;
    }
    status = od_stream_open(path, &stream);
    if (status != OD_OK)
        goto out;
    od_stream_expect_size(stream, (size_t)records * record);
    for (int done = 0; done < records;) {
        int n = records - done < CHUNK ? records - done : CHUNK;
        status = od_stream_read(stream, chunk, (size_t)n * record);
        if (status != OD_OK)
            goto out;
        for (int i = 0; i < n; i++, done++) {
            const uint8_t *in = chunk + (size_t)i * record;
            uint8_t *to = out->images + ((size_t)out->n + (size_t)done) * PIXELS;
            if (in[which] >= classes) {
                status = od_fail(OD_ERR_FORMAT, "%s: expected labels 0 to %d, found %d at record %d", path, classes - 1,
                                 in[which], done);
                goto out;
            }
            out->labels[out->n + done] = in[which];
            in += label_bytes;
            for (int p = 0; p < PLANE; p++)
                for (int k = 0; k < 3; k++)
                    to[3 * p + k] = in[k * PLANE + p];
        }
    }
    status = od_stream_expect_end(stream);
    if (status == OD_OK)
        out->n += records;
out:
    od_stream_close(stream);
    free(chunk);
    return status;
}
