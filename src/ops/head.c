/* The off-diagonal prediction head's weight, mask and norm. */
#include "offdiag/ops/head.h"

#include "ops/team.h"

static od_status check_size(int d) {
    return d > 0 ? OD_OK : od_fail(OD_ERR_ARGUMENT, "off-diagonal head: width %d", d);
}

od_status od_offdiag_weight(od_device *device, od_span w, od_span v, int d) {
    od_status status = check_size(d);
    if (status)
        return status;
    /* Rows of an odd width are not aligned. */
    od_team team = OD_TEAM_OF(device, "offdiag_weight", w, v, (od_span){NULL, (size_t)d});
    return OD_TEAM_LAUNCH(device, &team, "rows", "weight", (size_t)d, OD_SPAN(w), OD_SPAN(v), OD_U32((uint32_t)d));
}

od_status od_offdiag_mask(od_device *device, od_span dw, int d) {
    od_kernel *kernel;
    od_status status = check_size(d);
    if (!status)
        status = od_kernel_get(device, "rows", od_team_scalar(device, "offdiag_mask").options, "mask", &kernel);
    return status ? status : OD_LAUNCH(kernel, OD_RANGE1((size_t)d, 64), OD_SPAN(dw), OD_U32((uint32_t)d));
}

od_status od_offdiag_norm(od_device *device, od_span out, od_span v, int d) {
    od_span row_values;
    od_status status = check_size(d);
    if (!status)
        status = od_span_create(device, 2 * (size_t)d, &row_values);
    if (status)
        return status;
    od_team team = od_team_scalar(device, "offdiag_norm");
    status = OD_TEAM_LAUNCH(device, &team, "rows", "row_norms", (size_t)d, OD_SPAN(row_values), OD_SPAN(v),
                            OD_U32((uint32_t)d));
    if (!status)
        status = OD_TEAM_LAUNCH(device, &team, "rows", "matrix_norms", 1, OD_SPAN(out), OD_SPAN(row_values),
                                OD_U32((uint32_t)d));
    od_buffer_release(row_values.buffer);
    return status;
}
