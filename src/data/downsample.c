#include "offdiag/data.h"

/* In place: image i of the result never passes image i of the source. */
static void average_down(od_split *split, int h, int w, int c, int factor) {
    int h_out = h / factor, w_out = w / factor;
    unsigned area = (unsigned)(factor * factor);
    uint8_t *out = split->images;
    for (size_t i = 0; i < (size_t)split->n; i++) {
        const uint8_t *image = split->images + i * h * w * c;
        for (int y = 0; y < h_out; y++)
            for (int x = 0; x < w_out; x++)
                for (int k = 0; k < c; k++) {
                    unsigned sum = area / 2;
                    for (int dy = 0; dy < factor; dy++)
                        for (int dx = 0; dx < factor; dx++)
                            sum += image[((y * factor + dy) * w + x * factor + dx) * c + k];
                    *out++ = (uint8_t)(sum / area);
                }
    }
}

od_status od_dataset_downsample(od_dataset *dataset, int factor) {
    if (factor < 1 || dataset->h % factor || dataset->w % factor)
        return od_fail(OD_ERR_ARGUMENT,
                       "%s: %dx%d images cannot be averaged down by %d: it does not divide their sides", dataset->name,
                       dataset->h, dataset->w, factor);
    if (factor == 1)
        return OD_OK;
    average_down(&dataset->train, dataset->h, dataset->w, dataset->c, factor);
    average_down(&dataset->test, dataset->h, dataset->w, dataset->c, factor);
    dataset->h /= factor;
    dataset->w /= factor;
    return OD_OK;
}
