/* The losses, the off-diagonal head and sums: small kernels with the same options that every training step needs, in one
 * program, since a program costs as much to build as one of them. */
#include "vector.clh"

/* A work-group's way along a row of d. */
#define FOR_ROW(at, lanes, d)                                                                                          \
    for (uint at = (uint)get_local_id(0) * V, lanes; at < (d) && (lanes = min((uint)V, (d)-at)); at += TEAM * V)

#include "head.clh"
#include "loss.clh"
#include "reduce.clh"
