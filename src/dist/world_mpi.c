/* Ranks through MPI. MPI's own error handler stays: what goes wrong in it ends all ranks with its message. */
#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "dist/world.h"

enum { CHUNK = 1 << 28, REQUESTS = 256 };

static struct {
    bool begun, settled;
    int rank, ranks, here;
    MPI_Comm sums, background; /* apart, so that either's order does not depend on the other's */
    MPI_Request requests[REQUESTS];
    int pending;
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
} world = {.ranks = 1, .here = 1};

static bool launched(void) {
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK",
                                            "MPI_LOCALNRANKS"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
        if (getenv(variables[i]))
            return true;
    return false;
}

od_status od_world_begin(void) {
    int provided = 0, length = 0;
    if (world.begun || !launched())
        return OD_OK;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided);
    world.begun = true;
    if (provided < MPI_THREAD_SERIALIZED)
        return od_fail(OD_ERR_UNSUPPORTED, "this MPI library does not let a process's threads take turns in it");
    MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world.ranks);
    MPI_Comm_dup(MPI_COMM_WORLD, &world.sums);
    MPI_Comm_dup(MPI_COMM_WORLD, &world.background);
    MPI_Comm here;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here);
    MPI_Comm_size(here, &world.here);
    MPI_Comm_free(&here);
    MPI_Get_library_version(world.version, &length);
    world.version[strcspn(world.version, ",\n")] = '\0';
    return OD_OK;
}

void world_settle(void) {
    world.settled = true;
}

void od_world_end(int code) {
    if (!world.begun)
        return;
    if (code && !world.settled)
        MPI_Abort(MPI_COMM_WORLD, code);
    MPI_Finalize();
    world.begun = false;
    world.rank = 0;
    world.ranks = 1;
}

int od_world_rank(void) {
    return world.rank;
}

int od_world_ranks(void) {
    return world.ranks;
}

int od_world_here(void) {
    return world.here;
}

void od_world_abort(int code) {
    if (world.begun)
        MPI_Abort(MPI_COMM_WORLD, code);
}

const char *od_world_version(void) {
    return world.version;
}

void world_counts(int *counts, int own) {
    if (world.ranks > 1)
        MPI_Allgather(&own, 1, MPI_INT, counts, 1, MPI_INT, world.sums);
    else
        *counts = own;
}

void world_sum(double *values, size_t n) {
    if (world.ranks > 1)
        MPI_Allreduce(MPI_IN_PLACE, values, (int)n, MPI_DOUBLE, MPI_SUM, world.sums);
}

void world_start_sum(float *values, size_t n) {
    for (size_t at = 0; at < n && world.ranks > 1; at += CHUNK) {
        if (world.pending == REQUESTS)
            world_finish_sums();
        MPI_Iallreduce(MPI_IN_PLACE, values + at, (int)(n - at < CHUNK ? n - at : CHUNK), MPI_FLOAT, MPI_SUM,
                       world.background, &world.requests[world.pending++]);
    }
}

void world_finish_sums(void) {
    if (world.pending) /* NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker): world_start_sum fills the list */
        MPI_Waitall(world.pending, world.requests, MPI_STATUSES_IGNORE);
    world.pending = 0;
}

void world_share(void *data, size_t bytes, int from) {
    for (size_t at = 0; at < bytes && world.ranks > 1; at += CHUNK)
        MPI_Bcast((char *)data + at, (int)(bytes - at < CHUNK ? bytes - at : CHUNK), MPI_BYTE, from, world.sums);
}

/* More than MPI counts: one rank after the other. */
static void gather_one_by_one(char *all, const size_t *bytes) {
    for (int r = 0; r < world.ranks; all += bytes[r++])
        world_share(all, bytes[r], r);
}

od_status world_gather(void *all, const size_t *bytes) {
    od_status status = OD_OK;
    if (world.ranks == 1)
        return OD_OK;
    int *sizes = malloc(2 * (size_t)world.ranks * sizeof *sizes), *starts = sizes ? sizes + world.ranks : NULL;
    size_t total = 0;
    for (int r = 0; r < world.ranks && sizes; r++) {
        starts[r] = (int)total;
        sizes[r] = (int)bytes[r];
        total += bytes[r];
    }
    if (!sizes)
        status = od_fail(OD_ERR_MEMORY, "no memory to gather from %d ranks", world.ranks);
    else if (total > INT_MAX)
        gather_one_by_one(all, bytes);
    else
        MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, sizes, starts, MPI_BYTE, world.sums);
    free(sizes);
    return status;
}

void world_split(bool stays) {
    MPI_Comm all = world.sums;
    if (world.ranks == 1)
        return;
    MPI_Comm_split(all, stays ? 0 : MPI_UNDEFINED, world.rank, &world.sums);
    MPI_Comm_free(&all);
    MPI_Comm_free(&world.background);
    if (!stays) {
        world.rank = world.ranks; /* not the first */
        world.ranks = 1;
        return;
    }
    MPI_Comm_dup(world.sums, &world.background);
    MPI_Comm_rank(world.sums, &world.rank);
    MPI_Comm_size(world.sums, &world.ranks);
}
