/* The k nearest of each query, found chunk by chunk of the bank, and their weighted vote.
 *
 * Better means a larger similarity or, of equals, a lower bank index; NaN counts as minus infinity. This order is total,
 * so the set of the k best is unique, whatever way finds it; they are kept in no particular order, and the vote adds
 * integers, whose sum has no order either.
 *   sims (queries, columns): similarities to bank rows first .. first + columns - 1
 *   best_sim, best_index (queries, k): the best of the rows before `first`, min(first, k) of them
 * Options: W (vector width of the serial kernel), TEAM (work-items a query of the other). */
#include "common.clh"
#include "wide_vectors.clh"

#define PASTE_(a, b) a##b
#define PASTE(a, b)  PASTE_(a, b)

static inline float ordered(float sim) {
    return sim == sim ? sim : -INFINITY;
}

/* ---- one work-item a query: a heap with the worst on top, tested against W similarities at a time ---------------------- */

static inline int worse(float sim, int index, float than_sim, int than_index) {
    return sim < than_sim || (sim == than_sim && index > than_index);
}

/* Put (sim, index) in the place of entry `hole`, whose children are heaps, and let it sink among the first `count`. */
static void sink(__global float *heap_sim, __global int *heap_index, int hole, int count, float sim, int index) {
    for (;;) {
        int child = 2 * hole + 1;
        if (child >= count)
            break;
        if (child + 1 < count &&
            worse(heap_sim[child + 1], heap_index[child + 1], heap_sim[child], heap_index[child]))
            child++;
        if (!worse(heap_sim[child], heap_index[child], sim, index))
            break;
        heap_sim[hole] = heap_sim[child];
        heap_index[hole] = heap_index[child];
        hole = child;
    }
    heap_sim[hole] = sim;
    heap_index[hole] = index;
}

__kernel GROUP(1, 1, 1) void knn_best_serial(__global float *best_sim, ulong best_sim_offset, __global int *best_index,
                                             ulong best_index_offset, __global const float *sims, ulong sims_offset,
                                             int columns, int first, int k) {
    const ulong query = get_global_id(0);
    __global float *heap_sim = AT(best_sim) + query * k;
    __global int *heap_index = AT(best_index) + query * k;
    __global const float *row = AT(sims) + query * columns;

    int j = 0;
    if (first < k) {
        const int fresh = min(k - first, columns);
        for (; j < fresh; j++) {
            heap_sim[first + j] = ordered(row[j]);
            heap_index[first + j] = first + j;
        }
        if (first + fresh == k)
            for (int hole = k / 2 - 1; hole >= 0; hole--)
                sink(heap_sim, heap_index, hole, k, heap_sim[hole], heap_index[hole]);
    }
    /* Later rows have higher indices: only a strictly larger similarity enters. NaN compares false. */
    float worst = heap_sim[0];
    while (j < columns) {
#if W > 1
        if (j + W <= columns && !any(PASTE(vload, W)(0, row + j) > worst)) {
            j += W;
            continue;
        }
#endif
        const int end = min(j + W, columns);
        for (; j < end; j++)
            if (row[j] > worst) {
                sink(heap_sim, heap_index, 0, k, row[j], first + j);
                worst = heap_sim[0];
            }
    }
}

/* ---- a work-group a query: radix selection on (similarity, index) as one 64-bit key ------------------------------------ */

#define BINS 256

/* The larger the better; unlike the floats' own bits, the order of unsigned integers. -0 becomes +0. */
static inline ulong order_key(float sim, int index) {
    const uint bits = as_uint(ordered(sim) + 0.0f);
    const uint key = bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
    return ((ulong)key << 32) | (0xffffffffu - (uint)index);
}

/* Key of candidate t: the best so far come first, then the chunk. */
#define CANDIDATE(t)                                                                                                   \
    ((t) < kept ? order_key(old_sim[t], old_index[t]) : order_key(row[(t) - kept], first + (t) - kept))

/* best_* are written, old_* hold the best of the chunks before. */
__kernel GROUP(TEAM, 1, 1) void knn_best_team(__global float *best_sim, ulong best_sim_offset, __global int *best_index,
                                              ulong best_index_offset, __global const float *old_sim,
                                              ulong old_sim_offset, __global const int *old_index,
                                              ulong old_index_offset, __global const float *sims, ulong sims_offset,
                                              int columns, int first, int k) {
    __local uint bins[BINS];
    __local ulong prefix;
    __local uint missing; /* how many of those that share the prefix belong to the best */
    __local uint done, taken;
    const int lane = (int)get_local_id(0);
    const ulong query = get_group_id(0);
    old_sim += old_sim_offset + query * k;
    old_index += old_index_offset + query * k;
    best_sim += best_sim_offset + query * k;
    best_index += best_index_offset + query * k;
    __global const float *row = AT(sims) + query * columns;
    const int kept = min(first, k), candidates = kept + columns;
    if (lane == 0) {
        prefix = 0;
        missing = (uint)min(k, candidates);
        taken = 0;
        done = 0;
    }
    /* Digit by digit from the top, until all that share the prefix belong to the best. */
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (int b = lane; b < BINS; b += TEAM)
            bins[b] = 0;
        barrier(CLK_LOCAL_MEM_FENCE);
        const ulong upper = shift == 56 ? 0 : ~(ulong)0 << (shift + 8);
        const uint finished = done; /* a copy: compilers read `done` ahead of `lane == 0`, while that lane writes it */
        if (!finished)
            for (int t = lane; t < candidates; t += TEAM) {
                const ulong key = CANDIDATE(t);
                if ((key & upper) == prefix)
                    atomic_inc(&bins[(key >> shift) & (BINS - 1)]);
            }
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane == 0 && !finished) {
            int b = BINS - 1;
            for (; bins[b] < missing; b--)
                missing -= bins[b];
            prefix |= (ulong)b << shift;
            done = bins[b] == missing;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int t = lane; t < candidates; t += TEAM)
        if (CANDIDATE(t) >= prefix) {
            const uint at = atomic_inc(&taken);
            best_sim[at] = ordered(t < kept ? old_sim[t] : row[t - kept]);
            best_index[at] = t < kept ? old_index[t] : first + t - kept;
        }
}

/* ---- the vote ---------------------------------------------------------------------------------------------------------- */

/* predicted (queries): the class with the largest sum of exp(sim / T), the lowest of equals. Weights are relative to the
 * largest one, in units of 2^-32; votes (queries, classes) is scratch. A label that is no class has no vote. */
__kernel void knn_vote(__global int *predicted, ulong predicted_offset, __global ulong *votes,
                       __global const float *best_sim, ulong best_sim_offset, __global const int *best_index,
                       ulong best_index_offset, __global const int *labels, int queries, int k, int classes,
                       float inverse_temperature) {
    const ulong query = get_global_id(0);
    if (query >= (ulong)queries)
        return;
    best_sim += best_sim_offset + query * k;
    best_index += best_index_offset + query * k;
    votes += query * classes;
    for (int c = 0; c < classes; c++)
        votes[c] = 0;
    float largest = -INFINITY;
    for (int i = 0; i < k; i++)
        largest = fmax(largest, best_sim[i]);
    for (int i = 0; i < k; i++) {
        const int label = labels[best_index[i]];
        const float below = best_sim[i] == largest ? 0.0f : best_sim[i] - largest; /* also where both are infinite */
        if (label >= 0 && label < classes)
            votes[label] += (ulong)(exp(below * inverse_temperature) * 0x1p32f);
    }
    int winner = 0;
    for (int c = 1; c < classes; c++)
        if (votes[c] > votes[winner])
            winner = c;
    AT(predicted)[query] = winner;
}
