/* Loaders that prepare only a slice of each batch: together they give what one without a slice gives. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "offdiag/data.h"

#define MUST(call) cr_assert_eq((call), OD_OK, "%s: %s", #call, od_error_message())

enum { IMAGES = 129, BATCH = 10, BATCHES = 13, EPOCHS = 3, LAST = IMAGES - (BATCHES - 1) * BATCH };

static uint8_t pixels[IMAGES];
static int32_t labels[IMAGES];
static const od_dataset dataset = {.name = "numbered", .h = 1, .w = 1, .c = 1, .classes = 10};
static const od_split split = {.n = IMAGES, .images = pixels, .labels = labels};
static uint32_t whole[EPOCHS * BATCHES][BATCH]; /* ids of whole batches */

static od_loader *create(od_loader_options options) {
    od_loader *loader;
    options.batch = BATCH;
    options.seed = 7;
    options.shuffle = true;
    MUST(od_loader_create(&dataset, &split, &options, &loader));
    return loader;
}

static void fill(void) {
    const od_batch *b;
    for (int i = 0; i < IMAGES; i++) {
        pixels[i] = (uint8_t)i;
        labels[i] = i % 10;
    }
    od_loader *loader = create((od_loader_options){0});
    for (int i = 0; i < EPOCHS * BATCHES; i++) {
        MUST(od_loader_next(loader, &b));
        cr_assert_eq(b->total, b->n);
        cr_assert_eq(b->n, i % BATCHES == BATCHES - 1 ? LAST : BATCH);
        memcpy(whole[i], b->ids, sizeof(uint32_t) * (size_t)b->n);
    }
    od_loader_destroy(loader);
}

/* The next batch is `place` of all, and holds images [first, first + count) of it. */
static void expect(od_loader *loader, int place, int first, int count) {
    const od_batch *b;
    MUST(od_loader_next(loader, &b));
    const int total = place % BATCHES == BATCHES - 1 ? LAST : BATCH, left = total > first ? total - first : 0;
    cr_assert_eq((int)(b->epoch * BATCHES + b->index), place);
    cr_assert_eq(b->total, total);
    cr_assert_eq(b->n, left < count ? left : count, "batch %d, slice %d + %d: %d images", place, first, count, b->n);
    for (int i = 0; i < b->n; i++) {
        cr_assert_eq(b->ids[i], whole[place][first + i], "batch %d, image %d", place, first + i);
        cr_assert_eq(b->images[i], b->ids[i]);
        cr_assert_eq(b->labels[i], (int32_t)(b->ids[i] % 10));
    }
}

TestSuite(slices, .init = fill);

Test(slices, cover_the_batches) {
    static const int shares[][3] = {{5, 3, 2}, {1, 8, 1}, {7, 2, 1}, {3, 3, 4}};
    for (size_t s = 0; s < sizeof shares / sizeof *shares; s++)
        for (int member = 0, first = 0; member < 3; first += shares[s][member++]) {
            od_loader *loader = create((od_loader_options){.first = first, .count = shares[s][member]});
            cr_assert_eq(od_loader_batches(loader), BATCHES);
            for (int place = 0; place < EPOCHS * BATCHES; place++)
                expect(loader, place, first, shares[s][member]);
            od_loader_destroy(loader);
        }
    od_loader *rest = create((od_loader_options){.first = 4}); /* count 0: to the end */
    expect(rest, 0, 4, 6);
    od_loader_destroy(rest);
    od_loader *complete = create((od_loader_options){.first = 9, .count = 1, .drop_last = true});
    cr_assert_eq(od_loader_batches(complete), BATCHES - 1); /* by whole batches */
    od_loader_destroy(complete);
}

/* Other slices, wider and narrower, and other places, at random moments. */
Test(slices, change_between_batches) {
    od_loader *loader = create((od_loader_options){.first = 2, .count = 3, .depth = 2});
    int place = 0, first = 2, count = 3;
    for (uint32_t round = 0; round < 400; round++) {
        uint32_t random[4];
        for (uint32_t i = 0; i < 4; i++)
            random[i] = (uint32_t)(od_rng_u01((round * 4 + i) * 2654435761u) * 1000.0f);
        if (random[0] % 3 == 0) {
            first = (int)(random[1] % (BATCH + 1));
            count = (int)(random[2] % (uint32_t)(BATCH + 1 - first));
            MUST(od_loader_set_slice(loader, first, count));
        }
        if (random[0] % 5 == 0 || place >= EPOCHS * BATCHES - 3) {
            place = (int)(random[3] % (EPOCHS * BATCHES - 4));
            MUST(od_loader_seek(loader, (uint32_t)place / BATCHES, (uint32_t)place % BATCHES));
        }
        for (uint32_t i = 0; i < random[3] % 3; i++)
            expect(loader, place++, first, count);
    }
    od_loader_destroy(loader);
}

Test(slices, refuse) {
    od_loader *loader;
    static const int wrong[][2] = {{-1, 3}, {0, 11}, {5, 6}, {11, 0}, {3, -1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        cr_expect_eq(od_loader_create(&dataset, &split,
                                      &(od_loader_options){.batch = BATCH, .first = wrong[i][0], .count = wrong[i][1]},
                                      &loader),
                     OD_ERR_ARGUMENT);
    loader = create((od_loader_options){.count = 5});
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        cr_expect_eq(od_loader_set_slice(loader, wrong[i][0], wrong[i][1]), OD_ERR_ARGUMENT);
    cr_expect(strstr(od_error_message(), "not in a batch of 10") != NULL);
    expect(loader, 0, 0, 5); /* as if nothing had been asked */
    od_loader_destroy(loader);
}
