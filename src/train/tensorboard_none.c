/* The build without protobuf-c or libpng. */
#include "train/tensorboard.h"

od_status od_tensorboard_open(od_tensorboard **out, const char *dir, uint64_t step) {
    (void)step;
    *out = NULL;
    return od_fail(OD_ERR_UNSUPPORTED,
                   "%s: no TensorBoard events: this program was built without protobuf-c and libpng "
                   "(libprotobuf-c-dev, protobuf-c-compiler, libpng-dev)",
                   dir);
}

static od_status none(void) {
    return od_fail(OD_ERR_ARGUMENT, "TensorBoard events: no file is open");
}

od_status od_tensorboard_flush(od_tensorboard *tb) {
    (void)tb;
    return none();
}

void od_tensorboard_close(od_tensorboard *tb) {
    (void)tb;
}

od_status od_tensorboard_scalars(od_tensorboard *tb, uint64_t step, const od_scalar *scalars, size_t count) {
    (void)tb, (void)step, (void)scalars, (void)count;
    return none();
}

od_status od_tensorboard_histogram(od_tensorboard *tb, uint64_t step, const char *tag, const float *values,
                                   size_t count) {
    (void)tb, (void)step, (void)tag, (void)values, (void)count;
    return none();
}

od_status od_tensorboard_image(od_tensorboard *tb, uint64_t step, const char *tag, const uint8_t *rgb, int width,
                               int height) {
    (void)tb, (void)step, (void)tag, (void)rgb, (void)width, (void)height;
    return none();
}
