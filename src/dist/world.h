/* What src/dist needs of MPI; world_none.c stands in where the build has none. All calls but world_counts are made by
 * one thread of a process at a time. */
#ifndef DIST_WORLD_H
#define DIST_WORLD_H

#include <stddef.h>

#include "dist/team.h"

/* What comes now is known to all ranks: a team has ended. */
void world_settle(void);
/* counts (ranks): `own` of each rank. */
void world_counts(int *counts, int own);
/* values (n): the sum over ranks, in place. Waits. */
void world_sum(double *values, size_t n);
/* The same in the background; sums are taken in the order in which they were started. */
void world_start_sum(float *values, size_t n);
void world_finish_sums(void);
/* all (sum of bytes): rank r gives bytes[r], which lie there in the order of ranks; own is in place. */
od_status world_gather(void *all, const size_t *bytes);
void world_share(void *data, size_t bytes, int from);
/* Ranks that do not stay are none of the world any more, and the others' numbers close up. Collective. */
void world_split(bool stays);

#endif
