/* Element-wise operations. */
#include "offdiag/ops/pointwise.h"

#include "ops/team.h"

/* The last two arguments of each kernel, and its number of work-groups. */
#define COUNT_ARGS(team, count) OD_U64(count), OD_U32((uint32_t)(team).block)
#define BLOCKS_OF(team, count)  od_ceil_div((count), (team).block)

od_status od_relu_forward(od_device *device, od_span y, od_span x, size_t count) {
    od_team team = OD_TEAM_OF(device, "relu_forward", y, x);
    team.work = (od_work){(double)count, 8.0 * (double)count};
    return OD_TEAM_LAUNCH(device, &team, "pointwise", "relu_forward", BLOCKS_OF(team, count), OD_SPAN(y), OD_SPAN(x),
                          COUNT_ARGS(team, count));
}

od_status od_relu_backward(od_device *device, od_span dx, od_span dy, od_span y, size_t count) {
    od_team team = OD_TEAM_OF(device, "relu_backward", dx, dy, y);
    team.work = (od_work){(double)count, 12.0 * (double)count};
    return OD_TEAM_LAUNCH(device, &team, "pointwise", "relu_backward", BLOCKS_OF(team, count), OD_SPAN(dx), OD_SPAN(dy),
                          OD_SPAN(y), COUNT_ARGS(team, count));
}

od_status od_add(od_device *device, od_span out, od_span a, od_span b, size_t count) {
    od_team team = OD_TEAM_OF(device, "add", out, a, b);
    team.work = (od_work){(double)count, 12.0 * (double)count};
    return OD_TEAM_LAUNCH(device, &team, "pointwise", "add", BLOCKS_OF(team, count), OD_SPAN(out), OD_SPAN(a),
                          OD_SPAN(b), COUNT_ARGS(team, count));
}

od_status od_scale(od_device *device, od_span x, float factor, size_t count) {
    od_team team = OD_TEAM_OF(device, "scale", x);
    team.work = (od_work){(double)count, 8.0 * (double)count};
    return OD_TEAM_LAUNCH(device, &team, "pointwise", "scale", BLOCKS_OF(team, count), OD_SPAN(x), OD_F32(factor),
                          COUNT_ARGS(team, count));
}

od_status od_axpy(od_device *device, od_span y, float alpha, od_span x, size_t count) {
    od_team team = OD_TEAM_OF(device, "axpy", y, x);
    team.work = (od_work){2.0 * (double)count, 12.0 * (double)count};
    return OD_TEAM_LAUNCH(device, &team, "pointwise", "axpy", BLOCKS_OF(team, count), OD_SPAN(y), OD_SPAN(x),
                          OD_F32(alpha), COUNT_ARGS(team, count));
}
