/* Fewer parts of batch norm's statistics and sums: a convolution gives one for each tile of its output, and adding up
 * very many is slow where few work-items do it. */

/* out (groups, kept, 3, c) from partial (groups, parts, 3, c): how many values, their mean, the sum of squares about
 * it. Each takes `each` parts. Work-items: (c, kept, groups). */
__kernel void conv_gpu_stats(__global float *out, __global const float *partial, int parts, int each, int c, int kept) {
    const int column = get_global_id(0), first = (int)get_global_id(1) * each;
    if (column >= c || get_global_id(1) >= kept)
        return;
    const int last = min(first + each, parts);
    partial += get_global_id(2) * parts * 3 * c + column;
    out += (get_global_id(2) * kept + get_global_id(1)) * 3 * c + column;
    float count = 0.0f, sum = 0.0f, m2 = 0.0f;
    for (int i = first; i < last; i++) {
        __global const float *part = partial + (ulong)i * 3 * c;
        count += part[0];
        sum = fma(part[0], part[c], sum);
    }
    const float mean = sum / count;
    for (int i = first; i < last; i++) {
        __global const float *part = partial + (ulong)i * 3 * c;
        const float d = part[c] - mean;
        m2 += fma(part[0], d * d, part[2 * c]);
    }
    out[0] = count;
    out[c] = mean;
    out[2 * c] = m2;
}

/* out (groups, kept, c) from partial (groups, parts, c): sums, `each` parts of them in order. Work-items: (c, kept,
 * groups). */
__kernel void conv_gpu_sums(__global float *out, __global const float *partial, int parts, int each, int c, int kept) {
    const int column = get_global_id(0), first = (int)get_global_id(1) * each;
    if (column >= c || get_global_id(1) >= kept)
        return;
    const int last = min(first + each, parts);
    partial += get_global_id(2) * parts * c + column;
    float sum = 0.0f;
    for (int i = first; i < last; i++)
        sum += partial[(ulong)i * c];
    out[(get_global_id(2) * kept + get_global_id(1)) * c + column] = sum;
}
