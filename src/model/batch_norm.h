/* Batch norm over the rows of all members of a team: each device's sums go through the host, where they are added up in
 * double precision, so that every member normalises by the same bits. Without a team (member NULL) these are the
 * operations themselves. */
#ifndef MODEL_BATCH_NORM_H
#define MODEL_BATCH_NORM_H

#include "dist/team.h"
#include "offdiag/ops/norm.h"

/* As od_bn_statistics and od_bn_finish, of the rows of all. */
od_status od_bn_all_statistics(od_device *device, od_member *member, const od_bn_shape *shape,
                               const od_bn_params *params, od_span saved, od_span x);
od_status od_bn_all_finish(od_device *device, od_member *member, const od_bn_shape *shape, const od_bn_params *params,
                           od_span saved, od_span partial, int parts);
/* As od_bn_backward; dgamma and dbeta are of the rows here, like all gradients before they are reduced. */
od_status od_bn_all_backward(od_device *device, od_member *member, const od_bn_shape *shape, const od_bn_fuse *fuse,
                             od_span dx, od_span d_residual, od_span dgamma, od_span dbeta, od_span dy, od_span y,
                             od_span x, od_span saved, bool accumulate);
/* sums (groups, 2, C) of the rows here become those of all; *all_rows: how many those are in a group. */
od_status od_bn_all_sums(od_member *member, const od_bn_shape *shape, od_span sums, int *all_rows);

#endif
