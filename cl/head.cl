/* The off-diagonal head; a work-group takes a row of the (d, d) matrix. */
#include "vector.clh"

#define FOR_ROW(at, lanes, d)                                                                                          \
    for (uint at = (uint)get_local_id(0) * V, lanes; at < (d) && (lanes = min((uint)V, (d)-at)); at += TEAM * V)

TEAM_KERNEL weight(__global float *w, ulong w_offset, const __global float *v, ulong v_offset, uint d) {
    uint i = (uint)get_group_id(0);
    __global float *row = w + w_offset + (ulong)i * d;
    FOR_ROW(at, lanes, d) {
        store(row + at, load(v + v_offset + (ulong)i * d + at, lanes), lanes);
        if (i >= at && i < at + lanes)
            row[i] = 1.0f;
    }
}

__kernel void mask(__global float *dw, ulong dw_offset, uint d) {
    ulong i = get_global_id(0);
    if (i < d)
        dw[dw_offset + i * d + i] = 0.0f;
}

/* row_values (2, d): the sums of squares and the largest magnitudes of the rows, without the diagonal. */
TEAM_KERNEL row_norms(__global float *row_values, ulong row_values_offset, const __global float *v, ulong v_offset,
                      uint d) {
    __local float scratch[TEAM];
    uint i = (uint)get_group_id(0);
    const __global float *row = v + v_offset + (ulong)i * d;
    float sum = 0.0f, largest = 0.0f;
    for (uint j = (uint)get_local_id(0); j < d; j += TEAM) {
        float entry = j == i ? 0.0f : row[j];
        sum += entry * entry;
        largest = max_or_nan(fabs(entry), largest);
    }
    sum = team_sum(sum, scratch);
    largest = team_max(largest, scratch);
    if (get_local_id(0) == 0) {
        row_values[row_values_offset + i] = sum;
        row_values[row_values_offset + d + i] = largest;
    }
}

/* out (2): Frobenius norm and largest magnitude; one work-group. */
TEAM_KERNEL matrix_norms(__global float *out, ulong out_offset, const __global float *row_values,
                         ulong row_values_offset, uint d) {
    __local float scratch[TEAM];
    const __global float *row = row_values + row_values_offset;
    float sum = 0.0f, largest = 0.0f;
    for (uint i = (uint)get_local_id(0); i < d; i += TEAM) {
        sum += row[i];
        largest = max_or_nan(row[d + i], largest);
    }
    sum = team_sum(sum, scratch);
    largest = team_max(largest, scratch);
    if (get_local_id(0) == 0) {
        out[out_offset] = sqrt(sum);
        out[out_offset + 1] = largest;
    }
}
