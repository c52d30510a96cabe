/* The kNN vote against a full sort in double, its rules for ties, and its limits. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/knn.h"
#include "reference/knn.h"

/* One test a family, so that a case list belongs to one device. */
#define EACH_FAMILY(suite, name)                                                                                       \
    Test(suite, name##_ref) {                                                                                          \
        name(OD_FAMILY_REF);                                                                                           \
    }                                                                                                                  \
    Test(suite, name##_cpu) {                                                                                          \
        name(OD_FAMILY_CPU);                                                                                           \
    }                                                                                                                  \
    Test(suite, name##_gpu) {                                                                                          \
        name(OD_FAMILY_GPU);                                                                                           \
    }

static void normalize(float *x, int rows, int d) {
    for (int r = 0; r < rows; r++) {
        double squares = 0;
        for (int j = 0; j < d; j++)
            squares += (double)x[(size_t)r * d + j] * x[(size_t)r * d + j];
        for (int j = 0; j < d; j++)
            x[(size_t)r * d + j] = (float)(x[(size_t)r * d + j] / sqrt(squares));
    }
}

/* Labels at the buffer's start: od_knn_vote takes no offset for them. */
static od_buffer *label_buffer(od_device *device, const int32_t *labels, int count) {
    od_buffer *buffer;
    OD_MUST(od_buffer_create(device, (size_t)count * sizeof *labels, &buffer));
    OD_MUST(od_buffer_write(buffer, 0, labels, (size_t)count * sizeof *labels));
    return buffer;
}

static void check_vote(od_cases *c, od_device *device, const od_knn_shape *s) {
    const size_t nq = (size_t)s->queries * s->d, nb = (size_t)s->bank * s->d;
    float *queries = od_case_normals(c, nq, 0), *bank = od_case_normals(c, nb, 1);
    int32_t *labels = (int32_t *)od_case_indices(c, (size_t)s->bank, (uint32_t)s->classes, 2);
    for (size_t i = 0; i < nb; i++) /* classes lie in different directions, so that the vote means something */
        bank[i] += (int)(i % (size_t)s->d) % s->classes == labels[i / (size_t)s->d] ? 1.0F : 0.0F;
    normalize(queries, s->queries, s->d);
    normalize(bank, s->bank, s->d);
    const od_span qs = od_case_input(c, "queries", queries, nq), bs = od_case_input(c, "bank", bank, nb);
    od_buffer *label_words = label_buffer(device, labels, s->bank);
    int32_t *first = od_case_alloc(c, (size_t)s->queries * sizeof *first);
    int32_t *second = od_case_alloc(c, (size_t)s->queries * sizeof *second);
    memset(first, 0xff, (size_t)s->queries * sizeof *first);
    reference_neighbour *room = od_case_alloc(c, (size_t)s->bank * sizeof *room);
    double *sums = od_case_alloc(c, (size_t)s->classes * sizeof *sums);
    if (od_case_ok(c, od_knn_vote(device, s, first, qs, bs, label_words)) &&
        od_case_ok(c, od_knn_vote(device, s, second, qs, bs, label_words))) {
        int compared = 0;
        for (int q = 0; q < s->queries; q++) {
            double margin;
            const int32_t want = reference_knn(queries + (size_t)q * s->d, bank, labels, s, room, sums, &margin);
            if (margin < 1e-4) /* rounding may decide */
                continue;
            compared++;
            if (!od_case_check(c, first[q] == want, "query %d: class %d, not %d (margin %.2e)", q, first[q], want,
                               margin))
                break;
        }
        od_case_check(c, compared * 10 >= s->queries * 9, "only %d of %d queries are clear", compared, s->queries);
        od_case_check(c, memcmp(first, second, (size_t)s->queries * sizeof *first) == 0, "a second run differs");
    }
    od_buffer_release(label_words);
}

static void vote(od_family family) {
    static const od_knn_shape shapes[] = {
        {3, 1, 2, 1, 1, 0.07F},       {5, 7, 3, 2, 3, 0.1F},         {17, 65, 13, 10, 5, 0.07F},
        {4, 33, 8, 3, 200, 0.07F},    {9, 1025, 17, 10, 200, 0.07F}, {33, 257, 16, 4, 1, 0.5F},
        {7, 9001, 12, 10, 20, 0.07F}, {600, 300, 8, 100, 11, 0.2F},  {6, 4100, 9, 5, 4099, 0.07F},
        {3, 20000, 6, 3, 200, 0.07F},
    };
    od_device *device = od_test_device(family);
    od_cases *c = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(shapes); i++) {
        const od_knn_shape *s = &shapes[i];
        if (od_test_affords((double)s->queries * s->bank * s->d) &&
            od_case(c, "knn family=%s queries=%d bank=%d d=%d classes=%d k=%d t=%g", od_family_name(family), s->queries,
                    s->bank, s->d, s->classes, s->k, s->temperature))
            check_vote(c, device, s);
    }
    od_cases_end(c);
}
EACH_FAMILY(knn, vote)

/* ---- ties ------------------------------------------------------------------------------------------------------- */

/* One query (1, 0) in a bank given by the first coordinates of its rows. */
static void check_small(od_cases *c, od_device *device, int bank, const float *sims, const int32_t *labels, int k,
                        int32_t want) {
    const float query[2] = {1, 0};
    float *rows = od_case_alloc(c, 2 * (size_t)bank * sizeof *rows);
    for (int b = 0; b < bank; b++)
        rows[2 * b] = sims[b];
    const od_span qs = od_case_input(c, "query", query, 2), bs = od_case_input(c, "bank", rows, 2 * (size_t)bank);
    od_buffer *label_words = label_buffer(device, labels, bank);
    const od_knn_shape s = {1, bank, 2, 3, k, 0.1F};
    int32_t got = -1;
    if (od_case_ok(c, od_knn_vote(device, &s, &got, qs, bs, label_words)))
        od_case_check(c, got == want, "class %d, not %d", got, want);
    od_buffer_release(label_words);
}

static void ties(od_family family) {
    enum { LONG = 10000 };
    static float sims[LONG];
    static int32_t labels[LONG];
    od_device *device = od_test_device(family);
    od_cases *c = od_cases_begin(device);
    /* Equal sums: the lower class, wherever its rows lie. */
    if (od_case(c, "knn ties family=%s classes", od_family_name(family)))
        check_small(c, device, 4, (float[]){0.5F, 0.5F, 0.5F, 0.5F}, (int32_t[]){2, 1, 2, 1}, 4, 1);
    /* Equal similarities at the edge: the lower index. */
    if (od_case(c, "knn ties family=%s edge", od_family_name(family)))
        check_small(c, device, 4, (float[]){0.1F, 0.5F, 0.5F, 0.5F}, (int32_t[]){0, 2, 1, 1}, 1, 2);
    if (od_case(c, "knn ties family=%s three equal, two taken", od_family_name(family)))
        check_small(c, device, 5, (float[]){0.5F, 0.1F, 0.5F, 0.5F, 0.5F}, (int32_t[]){2, 0, 2, 1, 1}, 3, 2);
    if (od_case(c, "knn ties family=%s signed zeros are equal", od_family_name(family)))
        check_small(c, device, 3, (float[]){-0.0F, 0.0F, 0.0F}, (int32_t[]){2, 1, 1}, 1, 2);
    /* All alike over several chunks: the first k. */
    for (int i = 0; i < LONG; i++) {
        sims[i] = 0.25F;
        labels[i] = i < 7 ? 2 : i % 2;
    }
    if (od_test_affords(2.0 * LONG) && od_case(c, "knn ties family=%s one value, many chunks", od_family_name(family)))
        check_small(c, device, LONG, sims, labels, 7, 2);
    /* The best arrive last, in the last chunk. */
    for (int i = 0; i < LONG; i++) {
        sims[i] = (float)i / LONG;
        labels[i] = i >= LONG - 9 ? 1 : 0;
    }
    if (od_test_affords(2.0 * LONG) && od_case(c, "knn ties family=%s rising", od_family_name(family)))
        check_small(c, device, LONG, sims, labels, 9, 1);
    /* NaN is the farthest of all, a class out of range has no vote. */
    if (od_case(c, "knn family=%s nan and wrong labels", od_family_name(family)))
        check_small(c, device, 5, (float[]){NAN, NAN, -0.5F, 0.9F, -0.6F}, (int32_t[]){1, 1, 2, 7, 2}, 3, 2);
    od_cases_end(c);
}
EACH_FAMILY(knn, ties)

Test(knn, refuses_wrong_arguments) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_span x;
    OD_MUST(od_span_create(device, 64, &x));
    const int32_t label = 0;
    od_buffer *labels = label_buffer(device, &label, 1);
    int32_t predicted[4];
    od_knn_shape s = {4, 0, 4, 2, 1, 0.07F};
    cr_assert_eq(od_knn_vote(device, &s, predicted, x, x, labels), OD_ERR_ARGUMENT);
    s = (od_knn_shape){4, 4, 4, 2, 1, 0};
    cr_assert_eq(od_knn_vote(device, &s, predicted, x, x, labels), OD_ERR_ARGUMENT);
    s = (od_knn_shape){4, 1 << 20, 4, 2, 1, 0.07F};
    cr_assert_eq(od_knn_vote(device, &s, predicted, x, x, labels), OD_ERR_ARGUMENT);
    cr_assert(strstr(od_error_message(), "labels"), "%s", od_error_message());
    s = (od_knn_shape){0, 1, 4, 2, 1, 0.07F};
    cr_assert_eq(od_knn_vote(device, &s, predicted, x, x, labels), OD_OK);
    od_buffer_release(labels);
    od_buffer_release(x.buffer);
}
