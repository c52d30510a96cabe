/* The kNN vote in double: all similarities, a full sort, sums of exponentials. */
#ifndef REFERENCE_KNN_H
#define REFERENCE_KNN_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "offdiag/ops/knn.h"

typedef struct reference_neighbour {
    double sim;
    int index;
} reference_neighbour;

static inline int reference_nearer(const void *a, const void *b) {
    const reference_neighbour *x = a, *y = b;
    return x->sim != y->sim ? (x->sim > y->sim ? -1 : 1) : x->index - y->index;
}

/* The class for one query x (d), and by how much (of the largest sum) it wins; room for `bank` neighbours and `classes`
 * sums. */
static inline int32_t reference_knn(const float *x, const float *bank, const int32_t *labels, const od_knn_shape *s,
                                    reference_neighbour *room, double *sums, double *margin) {
    for (int b = 0; b < s->bank; b++) {
        room[b] = (reference_neighbour){0, b};
        for (int j = 0; j < s->d; j++)
            room[b].sim += (double)x[j] * bank[(size_t)b * s->d + j];
    }
    qsort(room, (size_t)s->bank, sizeof *room, reference_nearer);
    for (int c = 0; c < s->classes; c++)
        sums[c] = 0;
    for (int i = 0; i < s->k && i < s->bank; i++)
        sums[labels[room[i].index]] += exp((room[i].sim - room[0].sim) / s->temperature);
    int32_t best = 0;
    for (int c = 1; c < s->classes; c++)
        if (sums[c] > sums[best])
            best = c;
    double second = 0;
    for (int c = 0; c < s->classes; c++)
        if (c != best && sums[c] > second)
            second = sums[c];
    *margin = (sums[best] - second) / sums[best];
    if (s->k < s->bank) { /* what lies at the edge of the k best may be taken or left by rounding */
        const double gap = room[s->k - 1].sim - room[s->k].sim;
        if (gap < 1e-6 && gap > 0)
            *margin = 0;
    }
    return best;
}

#endif
