/* A build without MPI: one process. */
#include <stdlib.h>

#include "dist/world.h"

od_status od_world_begin(void) {
    static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const char *size = getenv(sizes[i]);
        if (size && strtol(size, NULL, 10) > 1)
            return od_fail(OD_ERR_UNSUPPORTED,
                           "started as one of %s processes, but this build has no MPI: install "
                           "libopenmpi-dev and build again",
                           size);
    }
    return OD_OK;
}

void od_world_end(int code) {
    (void)code;
}

void world_settle(void) {
}

int od_world_rank(void) {
    return 0;
}

int od_world_ranks(void) {
    return 1;
}

int od_world_here(void) {
    return 1;
}

void od_world_abort(int code) {
    (void)code;
}

const char *od_world_version(void) {
    return "";
}

void world_counts(int *counts, int own) {
    *counts = own;
}

void world_sum(double *values, size_t n) {
    (void)values;
    (void)n;
}

void world_start_sum(float *values, size_t n) {
    (void)values;
    (void)n;
}

void world_finish_sums(void) {
}

od_status world_gather(void *all, const size_t *bytes) {
    (void)all;
    (void)bytes;
    return OD_OK;
}

void world_share(void *data, size_t bytes, int from) {
    (void)data;
    (void)bytes;
    (void)from;
}

void world_split(bool stays) {
    (void)stays;
}
