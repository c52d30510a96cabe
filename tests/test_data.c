/* Data files good and bad, and the loader. Files are written into a scratch folder of each test. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "base/rng.h"
#include "data/reader.h"
#include "harness.h"

/* ---- scratch files ------------------------------------------------------------------------------------------------
 */

static char scratch[256];

static void make_scratch(void) {
    const char *tmp = getenv("TMPDIR");
    (void)snprintf(scratch, sizeof(scratch), "%s/offdiag-data-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    cr_assert(mkdtemp(scratch), "mkdtemp: %s", strerror(errno));
}

static void remove_scratch(void) {
    char command[300];
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", scratch);
    cr_assert_eq(system(command), 0);
}

TestSuite(data, .init = make_scratch, .fini = remove_scratch);

static const char *in_scratch(const char *file) {
    static char paths[4][400];
    static unsigned next;
    char *path = paths[next++ % 4];
    (void)snprintf(path, 400, "%s/%s", scratch, file);
    return path;
}

static void put(const char *path, const void *bytes, size_t size) {
    FILE *f = fopen(path, "wb");
    cr_assert(f && fwrite(bytes, 1, size, f) == size && fclose(f) == 0, "%s", path);
}

static void put_gz(const char *path, const void *bytes, size_t size) {
    gzFile f = gzopen(path, "wb");
    cr_assert(f && gzwrite(f, bytes, (unsigned)size) == (int)size && gzclose(f) == Z_OK, "%s", path);
}

static size_t get(const char *path, uint8_t *bytes, size_t most) {
    FILE *f = fopen(path, "rb");
    cr_assert(f, "%s", path);
    size_t size = fread(bytes, 1, most, f);
    cr_assert_eq(fclose(f), 0);
    return size;
}

/* ---- IDX ----------------------------------------------------------------------------------------------------------
 */

enum { N = 5, H = 28, W = 28, IDX_IMAGES = 16 + N * H * W, IDX_LABELS = 8 + N };
typedef struct idx_pair {
    uint8_t images[IDX_IMAGES + 8], labels[IDX_LABELS + 8];
    size_t images_size, labels_size;
} idx_pair;

static void put_be(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static idx_pair good_idx(void) {
    idx_pair p = {.images_size = IDX_IMAGES, .labels_size = IDX_LABELS};
    const uint32_t header[4] = {0x803, N, H, W};
    for (int i = 0; i < 4; i++)
        put_be(p.images + 4 * i, header[i]);
    for (int i = 16; i < IDX_IMAGES; i++)
        p.images[i] = (uint8_t)(i * 7 + i / 251);
    put_be(p.labels, 0x801);
    put_be(p.labels + 4, N);
    for (int i = 0; i < N; i++)
        p.labels[8 + i] = (uint8_t)(9 - i);
    return p;
}

static od_status read_pair(const idx_pair *p, bool gz, od_split *split) {
    const char *images = in_scratch("images"), *labels = in_scratch("labels");
    (gz ? put_gz : put)(images, p->images, p->images_size);
    (gz ? put_gz : put)(labels, p->labels, p->labels_size);
    return od_idx_read(images, labels, H, W, 10, split);
}

/* The message is one line that names the file and says what was expected and found. */
static void expect_bad(od_status status, od_status code, const char *file, const char *words) {
    const char *message = od_error_message();
    cr_expect_eq(status, code, "%s: %s instead of %s (%s)", words, od_status_name(status), od_status_name(code),
                 message);
    cr_expect(strstr(message, file), "'%s' does not name %s", message, file);
    cr_expect(strstr(message, words), "'%s' does not say '%s'", message, words);
    cr_expect(!strchr(message, '\n'), "'%s' is more than one line", message);
}

Test(data, idx_plain_and_gz) {
    idx_pair p = good_idx();
    for (int gz = 0; gz < 2; gz++) {
        od_split split;
        OD_MUST(read_pair(&p, gz, &split));
        cr_assert_eq(split.n, N);
        cr_expect_arr_eq(split.images, p.images + 16, N * H * W);
        for (int i = 0; i < N; i++)
            cr_expect_eq(split.labels[i], 9 - i);
        od_split_free(&split);
    }
}

Test(data, idx_bad) {
    const idx_pair good = good_idx();
    for (int gz = 0; gz < 2; gz++) {
        od_split split;
        idx_pair p = good;
        put_be(p.images, 0x801);
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images",
                   "expected magic 0x00000803 (IDX images), found 0x00000801");
        p = good;
        put_be(p.images + 4, N + 1);
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images", "expected 4720 bytes, found only 3936");
        p = good;
        put_be(p.images + 4, 90000000); /* claims 70 GB */
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images", "expected 70560000016 bytes, found only 3936");
        p = good;
        put_be(p.images + 4, 0xffffffffu);
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images", "found a header that says 4294967295");
        p = good;
        put_be(p.images + 4, 0);
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images", "found a header that says 0");
        p = good;
        put_be(p.images + 12, 56);
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images",
                   "expected images of 28 x 28, found a header that says 28 x 56");
        p = good;
        p.images_size--;
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images", "expected 3936 bytes, found only 3935");
        p = good;
        p.images_size++;
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images", "expected 3936 bytes, found more");
        p = good;
        p.images_size = 11;
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images", "found only 11");
        p = good;
        p.images_size = 0;
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "images", "found only 0");
        p = good;
        p.labels[8 + 3] = 10;
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "labels", "expected labels 0 to 9, found 10 at item 3");
        p = good;
        p.labels_size--;
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "labels", "expected 13 bytes, found only 12");
        p = good;
        put_be(p.labels + 4, N - 1);
        p.labels_size--;
        expect_bad(read_pair(&p, gz, &split), OD_ERR_FORMAT, "labels", "expected 5 labels");
    }
}

Test(data, gz_damage) {
    idx_pair p = good_idx();
    od_split split;
    uint8_t bytes[8192];
    const char *images = in_scratch("images"), *labels = in_scratch("labels");
    OD_MUST(read_pair(&p, true, &split));
    od_split_free(&split);
    size_t size = get(images, bytes, sizeof(bytes));

    put(images, bytes, size - 4);
    expect_bad(od_idx_read(images, labels, H, W, 10, &split), OD_ERR_FORMAT, "images", "cut off");
    put(images, bytes, size / 2);
    expect_bad(od_idx_read(images, labels, H, W, 10, &split), OD_ERR_FORMAT, "images", "expected a whole gzip stream");
    bytes[size - 6] ^= 1; /* the check sum */
    put(images, bytes, size);
    expect_bad(od_idx_read(images, labels, H, W, 10, &split), OD_ERR_FORMAT, "images", "found damage");
}

Test(data, not_a_file) {
    od_split split;
    expect_bad(od_idx_read(in_scratch("none"), in_scratch("none"), H, W, 10, &split), OD_ERR_IO, "none",
               "No such file");
    expect_bad(od_idx_read(scratch, scratch, H, W, 10, &split), OD_ERR_IO, scratch, "found a folder");
}

/* Random damage: an error with one line, or (where the damage is in pixels or labels) a split within its bounds. */
Test(data, idx_random_damage) {
    const idx_pair good = good_idx();
    unsigned failed = 0, rounds = 400;
    for (unsigned round = 0; round < rounds; round++) {
        idx_pair p = good;
        bool in_images = round % 3 != 0;
        uint8_t *bytes = in_images ? p.images : p.labels;
        size_t *size = in_images ? &p.images_size : &p.labels_size;
        uint32_t random[8];
        od_data_index(random, 8, 1u << 30, round, 0);
        for (int k = 0; k < 1 + (int)(random[0] % 3); k++)
            bytes[random[1 + k] % (random[0] & 16 ? 16 : *size)] = (uint8_t)random[4 + k];
        if (random[7] % 4 == 0)
            *size = random[7] % (*size + 1);
        bool gz = round & 1;
        od_split split;
        od_status status = read_pair(&p, gz, &split);
        if (gz && round % 4 == 1) { /* and damage to the compressed bytes */
            if (status == OD_OK)
                od_split_free(&split);
            uint8_t packed[8192];
            const char *images = in_scratch("images");
            size_t packed_size = get(images, packed, sizeof(packed));
            packed[random[6] % packed_size] ^= (uint8_t)(1u << random[5] % 8);
            put(images, packed, packed_size);
            status = od_idx_read(images, in_scratch("labels"), H, W, 10, &split);
        }
        if (status == OD_OK) {
            for (int i = 0; i < split.n; i++)
                cr_assert(split.labels[i] >= 0 && split.labels[i] < 10);
            od_split_free(&split);
            continue;
        }
        failed++;
        cr_assert_eq(status, OD_ERR_FORMAT, "round %u: %s", round, od_error_message());
        cr_assert(strstr(od_error_message(), scratch) && !strchr(od_error_message(), '\n'), "round %u: '%s'", round,
                  od_error_message());
    }
    cr_expect(failed > rounds / 4 && failed < rounds, "%u of %u failed", failed, rounds);
}

/* ---- CIFAR --------------------------------------------------------------------------------------------------------
 */

Test(data, cifar_records) {
    enum { RECORDS = 70, RECORD = 3073 }; /* more than the reader's chunk */
    uint8_t *bytes = malloc(RECORDS * RECORD + 1);
    cr_assert(bytes);
    for (int i = 0; i <= RECORDS * RECORD; i++)
        bytes[i] = i % RECORD == 0 ? (uint8_t)(i / RECORD % 10) : (uint8_t)(i * 31 + i / 1024);
    const char *path = in_scratch("batch.bin");
    od_split split = {0};
    put(path, bytes, RECORDS * RECORD);
    OD_MUST(od_cifar_read(path, 1, 0, 10, RECORDS, &split));
    put_gz(path, bytes, RECORDS * RECORD);
    OD_MUST(od_cifar_read(path, 1, 0, 10, RECORDS, &split)); /* appended */
    cr_assert_eq(split.n, 2 * RECORDS);
    for (int i = 0; i < 2 * RECORDS; i++) {
        const uint8_t *record = bytes + i % RECORDS * RECORD;
        cr_expect_eq(split.labels[i], record[0]);
        for (int p = 0; p < 1024; p += 341)
            for (int k = 0; k < 3; k++)
                cr_expect_eq(split.images[(i * 1024 + p) * 3 + k], record[1 + 1024 * k + p]);
    }
    od_split_free(&split);

    put(path, bytes, RECORDS * RECORD - 3073); /* cut between two records */
    expect_bad(od_cifar_read(path, 1, 0, 10, RECORDS, &split), OD_ERR_FORMAT, path,
               "expected 215110 bytes, found only 212037");
    put(path, bytes, RECORDS * RECORD + 1);
    expect_bad(od_cifar_read(path, 1, 0, 10, RECORDS, &split), OD_ERR_FORMAT, path,
               "expected 215110 bytes, found more");
    bytes[65 * RECORD] = 77;
    put(path, bytes, RECORDS * RECORD);
    expect_bad(od_cifar_read(path, 1, 0, 10, RECORDS, &split), OD_ERR_FORMAT, path, "found 77 at record 65");
    cr_expect_eq(split.n, 0);
    od_split_free(&split);
    free(bytes);
}

/* ---- by name ------------------------------------------------------------------------------------------------------
 */

Test(data, names_and_places) {
    od_dataset *dataset;
    expect_bad(od_dataset_open("fasion-mnist", NULL, 0, &dataset), OD_ERR_USAGE, "fasion-mnist", "'fashion-mnist'");
    expect_bad(od_dataset_open("cifar-10", NULL, 0, &dataset), OD_ERR_USAGE, "cifar-10", "'cifar10'");
    cr_expect_null(dataset);
    /* A folder that the caller names is the only one searched. */
    expect_bad(od_dataset_open("fashion-mnist", scratch, 0, &dataset), OD_ERR_IO, scratch, "dataset-fashion-mnist");
    cr_expect(!strstr(od_error_message(), "/usr/share"), "%s", od_error_message());
    setenv("OFFDIAG_DATA", scratch, 1);
    expect_bad(od_dataset_open("mnist", NULL, 0, &dataset), OD_ERR_IO, scratch, "/usr/share/datasets/mnist");
    for (const char *const *name = od_dataset_names(); *name; name++)
        cr_expect_neq(od_dataset_open(*name, scratch, 0, &dataset), OD_ERR_USAGE, "%s", *name);
}

Test(data, mnist_in_a_folder) {
    idx_pair p = good_idx();
    od_dataset *dataset;
    put(in_scratch("train-images-idx3-ubyte"), p.images, p.images_size);
    put_gz(in_scratch("train-labels-idx1-ubyte.gz"), p.labels, p.labels_size);
    put(in_scratch("t10k-images-idx3-ubyte"), p.images, p.images_size);
    expect_bad(od_dataset_open("mnist", scratch, 0, &dataset), OD_ERR_IO, "t10k-labels-idx1-ubyte", "found none");
    put(in_scratch("t10k-labels-idx1-ubyte"), p.labels, p.labels_size);
    OD_MUST(od_dataset_open("mnist", scratch, 0, &dataset));
    cr_expect(dataset->train.n == N && dataset->test.n == N && dataset->classes == 10 && dataset->c == 1);
    cr_expect_str_eq(dataset->dir, scratch);
    od_split_limit(&dataset->train, 3);
    od_split_limit(&dataset->test, 0);
    cr_expect(dataset->train.n == 3 && dataset->test.n == N);
    od_dataset_close(dataset);
}

/* Files of the right size, made of holes: all images black and of class 0. */
Test(data, cifar10_in_a_parent_folder) {
    char file[64];
    od_dataset *dataset;
    char command[400];
    (void)snprintf(command, sizeof(command), "mkdir '%s/cifar-10-batches-bin'", scratch);
    cr_assert_eq(system(command), 0);
    for (int i = 1; i <= 6; i++) {
        (void)snprintf(file, sizeof(file),
                       i < 6 ? "cifar-10-batches-bin/data_batch_%d.bin" : "cifar-10-batches-bin/test_batch.bin", i);
        const uint8_t label = (uint8_t)i;
        put(in_scratch(file), &label, 1);
        cr_assert_eq(truncate(in_scratch(file), 30730000), 0);
    }
    OD_MUST(od_dataset_open("cifar10", scratch, 0, &dataset));
    cr_expect(dataset->train.n == 50000 && dataset->test.n == 10000 && dataset->h == 32 && dataset->c == 3);
    cr_expect(dataset->train.labels[0] == 1 && dataset->train.labels[40000] == 5 && dataset->test.labels[0] == 6);
    od_dataset_close(dataset);
    cr_assert_eq(truncate(in_scratch(file), 30730000 / 2), 0);
    expect_bad(od_dataset_open("cifar10", scratch, 0, &dataset), OD_ERR_FORMAT, "test_batch.bin",
               "expected 30730000 bytes, found only 15365000");
}

Test(data, real_fashion_mnist) {
    if (access("/usr/share/datasets/fashion-mnist", F_OK) != 0)
        cr_skip_test("dataset-fashion-mnist is not installed");
    od_dataset *dataset;
    static const int32_t train[] = {9, 0, 0, 3, 0, 2, 7, 2, 5, 5}, test[] = {9, 2, 1, 1, 6, 1, 4, 6, 5, 7};
    unsetenv("OFFDIAG_DATA");
    OD_MUST(od_dataset_open("fashion-mnist", NULL, 0, &dataset));
    cr_expect(dataset->train.n == 60000 && dataset->test.n == 10000);
    cr_expect_arr_eq(dataset->train.labels, train, sizeof(train));
    cr_expect_arr_eq(dataset->test.labels, test, sizeof(test));
    double sum = 0, squares = 0;
    size_t pixels = (size_t)60000 * 784;
    int per_class[10] = {0};
    for (size_t i = 0; i < pixels; i++) {
        double v = dataset->train.images[i] / 255.0;
        sum += v;
        squares += v * v;
    }
    for (int i = 0; i < 60000; i++)
        per_class[dataset->train.labels[i]]++;
    for (int k = 0; k < 10; k++)
        cr_expect_eq(per_class[k], 6000);
    double mean = sum / (double)pixels, variance = squares / (double)pixels - mean * mean;
    cr_expect_float_eq(mean, dataset->mean[0], 1e-4, "mean %g", mean);
    cr_expect_float_eq(variance, (double)dataset->std[2] * dataset->std[2], 1e-4, "variance %g", variance);
    od_dataset_close(dataset);
}

Test(data, real_cifar10) {
    const char *dir = getenv("OFFDIAG_CIFAR10");
    if (!dir)
        cr_skip_test("OFFDIAG_CIFAR10 does not name cifar-10-batches-bin");
    od_dataset *dataset;
    OD_MUST(od_dataset_open("cifar10", dir, 0, &dataset));
    cr_expect(dataset->train.n == 50000 && dataset->test.n == 10000);
    int per_class[10] = {0};
    for (int i = 0; i < 50000; i++)
        per_class[dataset->train.labels[i]]++;
    for (int k = 0; k < 10; k++)
        cr_expect_eq(per_class[k], 5000);
    for (int k = 0; k < 3; k++) {
        double sum = 0;
        for (size_t i = 0; i < (size_t)50000 * 1024; i++)
            sum += dataset->train.images[3 * i + (size_t)k];
        cr_expect_float_eq(sum / 255 / 50000 / 1024, dataset->mean[k], 1e-4);
    }
    od_dataset_close(dataset);
}

/* 5 x 4 images of three channels by 2 would leave a row: refused; 4 x 6 by 2 gives rounded means, in both splits. */
Test(data, downsample) {
    enum { SIDE_H = 4, SIDE_W = 6, IMAGE = SIDE_H * SIDE_W * 3, COUNT = 3 };
    uint8_t train[COUNT * IMAGE], test[IMAGE], source[COUNT * IMAGE];
    for (int i = 0; i < COUNT * IMAGE; i++)
        train[i] = source[i] = (uint8_t)(i * 37 + i / 11);
    memcpy(test, source + IMAGE, IMAGE);
    od_dataset d = {
        .name = "small", .h = SIDE_H, .w = SIDE_W, .c = 3, .train = {COUNT, train, NULL}, .test = {1, test, NULL}};
    d.h = 5;
    expect_bad(od_dataset_downsample(&d, 2), OD_ERR_ARGUMENT, "small", "5x6");
    d.h = SIDE_H;
    cr_expect_eq(od_dataset_downsample(&d, 0), OD_ERR_ARGUMENT);
    OD_MUST(od_dataset_downsample(&d, 1));
    OD_MUST(od_dataset_downsample(&d, 2));
    cr_assert(d.h == 2 && d.w == 3);
    for (int i = 0; i < COUNT * IMAGE / 4; i++) {
        int image = i / (IMAGE / 4), y = i / 9 % 2, x = i / 3 % 3, k = i % 3, sum = 0;
        for (int dy = 0; dy < 2; dy++)
            for (int dx = 0; dx < 2; dx++)
                sum += source[image * IMAGE + ((2 * y + dy) * SIDE_W + 2 * x + dx) * 3 + k];
        cr_expect_eq(train[i], (sum + 2) / 4, "at %d", i);
    }
    cr_expect_arr_eq(test, train + IMAGE / 4, IMAGE / 4);
}

/* ---- loader -------------------------------------------------------------------------------------------------------
 */

/* n images of 2 x 2 that tell their own index. */
static od_dataset *numbered(int n) {
    od_dataset *d = calloc(1, sizeof(*d));
    cr_assert(d);
    *d = (od_dataset){.name = "numbered", .h = 2, .w = 2, .c = 1, .classes = 10};
    d->train.n = n;
    d->train.images = malloc((size_t)n * 4);
    d->train.labels = malloc((size_t)n * sizeof(int32_t));
    cr_assert(d->train.images && d->train.labels);
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < 4; k++)
            d->train.images[4 * i + k] = (uint8_t)(i >> (8 * k));
        d->train.labels[i] = i % 10;
    }
    return d;
}

static void check_batch(const od_batch *b) {
    for (int i = 0; i < b->n; i++) {
        const uint8_t *p = b->images + 4 * (size_t)i;
        cr_assert_eq(b->ids[i], p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        cr_assert_eq(b->labels[i], (int32_t)(b->ids[i] % 10));
    }
}

Test(loader, permutation) {
    enum { COUNT = 1000 };
    uint32_t a[COUNT], b[COUNT];
    char seen[COUNT] = {0};
    int kept = 0;
    od_rng_permutation(a, COUNT, 7, 3);
    od_rng_permutation(b, COUNT, 7, 3);
    cr_expect_arr_eq(a, b, sizeof(a));
    for (int i = 0; i < COUNT; i++) {
        cr_assert_lt(a[i], COUNT);
        seen[a[i]]++;
        kept += a[i] == (uint32_t)i;
    }
    for (int i = 0; i < COUNT; i++)
        cr_assert_eq(seen[i], 1);
    cr_expect_lt(kept, 8); /* one is expected */
    od_rng_permutation(b, COUNT, 7, 4);
    cr_expect_arr_neq(a, b, sizeof(a));
    od_rng_permutation(b, COUNT, 8, 3);
    cr_expect_arr_neq(a, b, sizeof(a));
    od_rng_permutation(b, COUNT, 7 + (1ull << 32), 3); /* all 64 bits of the seed count */
    cr_expect_arr_neq(a, b, sizeof(a));
}

/* Every place is equally likely for every element: chi-square over 8 x 8 cells, 49 degrees of freedom. */
Test(loader, permutation_is_uniform) {
    enum { COUNT = 8, ROUNDS = 4000 };
    int cells[COUNT * COUNT] = {0};
    for (uint32_t epoch = 0; epoch < ROUNDS; epoch++) {
        uint32_t order[COUNT];
        od_rng_permutation(order, COUNT, 1, epoch);
        for (int i = 0; i < COUNT; i++)
            cells[i * COUNT + (int)order[i]]++;
    }
    double chi = 0, expected = (double)ROUNDS / COUNT;
    for (int i = 0; i < COUNT * COUNT; i++)
        chi += (cells[i] - expected) * (cells[i] - expected) / expected;
    cr_expect(chi > 20 && chi < 95, "chi-square %g", chi);
}

Test(loader, streams_each_epoch) {
    od_dataset *d = numbered(103);
    for (int drop = 0; drop < 2; drop++) {
        od_loader *loader;
        const od_batch *b;
        od_loader_options options = {.batch = 10, .seed = 5, .shuffle = true, .drop_last = drop};
        OD_MUST(od_loader_create(d, &d->train, &options, &loader));
        cr_assert_eq(od_loader_batches(loader), drop ? 10u : 11u);
        for (uint32_t epoch = 0; epoch < 3; epoch++) {
            uint32_t order[103];
            od_rng_permutation(order, 103, 5, epoch);
            for (uint32_t i = 0; i < od_loader_batches(loader); i++) {
                OD_MUST(od_loader_next(loader, &b));
                cr_assert(b->epoch == epoch && b->index == i && b->n == (i == 10 ? 3 : 10));
                check_batch(b);
                cr_assert_arr_eq(b->ids, order + (size_t)i * 10, sizeof(uint32_t) * (size_t)b->n);
            }
        }
        od_loader_destroy(loader);
    }
    od_dataset_close(d);
}

Test(loader, in_order) {
    od_dataset *d = numbered(7);
    od_loader *loader;
    const od_batch *b;
    OD_MUST(od_loader_create(d, &d->train, &(od_loader_options){.batch = 64, .depth = 1}, &loader));
    for (int round = 0; round < 2; round++) {
        OD_MUST(od_loader_next(loader, &b));
        cr_assert_eq(b->n, 7);
        check_batch(b);
        for (uint32_t i = 0; i < 7; i++)
            cr_assert_eq(b->ids[i], i);
    }
    od_loader_destroy(loader);
    od_dataset_close(d);
}

Test(loader, seek_equals_streaming) {
    enum { BATCHES = 13, TOTAL = 4 * BATCHES };
    od_dataset *d = numbered(129);
    static uint32_t ids[TOTAL][10];
    od_loader *loader;
    const od_batch *b;
    od_loader_options options = {.batch = 10, .seed = 99, .shuffle = true};
    OD_MUST(od_loader_create(d, &d->train, &options, &loader));
    for (int i = 0; i < TOTAL; i++) {
        OD_MUST(od_loader_next(loader, &b));
        memcpy(ids[i], b->ids, sizeof(uint32_t) * (size_t)b->n);
    }
    for (uint32_t round = 0; round < 300; round++) {
        uint32_t random[2];
        od_data_index(random, 2, TOTAL - 5, round, 0);
        uint32_t at = random[0], epoch = at / BATCHES, index = at % BATCHES;
        if (index == 0 && epoch > 0 && round % 2) { /* the same place by its other name */
            epoch--;
            index = BATCHES;
        }
        OD_MUST(od_loader_seek(loader, epoch, index));
        for (uint32_t i = 0; i < random[1] % 5; i++) {
            OD_MUST(od_loader_next(loader, &b));
            cr_assert(b->epoch * BATCHES + b->index == at + i, "round %u", round);
            check_batch(b);
            cr_assert_arr_eq(b->ids, ids[at + i], sizeof(uint32_t) * (size_t)b->n);
        }
    }
    cr_expect_eq(od_loader_seek(loader, 0, BATCHES + 1), OD_ERR_ARGUMENT);
    od_loader_destroy(loader);

    options.seed = 100;
    OD_MUST(od_loader_create(d, &d->train, &options, &loader));
    OD_MUST(od_loader_next(loader, &b));
    cr_expect_arr_neq(b->ids, ids[0], sizeof(ids[0]));
    od_loader_destroy(loader);
    od_dataset_close(d);
}

/* What the caller holds does not change while the thread runs on. */
Test(loader, held_batch_stays) {
    od_dataset *d = numbered(64);
    od_loader *loader;
    const od_batch *b;
    uint32_t ids[8];
    OD_MUST(od_loader_create(d, &d->train, &(od_loader_options){.batch = 8, .shuffle = true, .depth = 2}, &loader));
    for (int i = 0; i < 20; i++) {
        OD_MUST(od_loader_next(loader, &b));
        memcpy(ids, b->ids, sizeof(ids));
        usleep(500);
        cr_assert_arr_eq(b->ids, ids, sizeof(ids));
        check_batch(b);
    }
    od_loader_destroy(loader);
    od_dataset_close(d);
}

Test(loader, refuses) {
    od_dataset *d = numbered(5);
    od_loader *loader;
    cr_expect_eq(od_loader_create(d, &d->train, &(od_loader_options){.batch = 0}, &loader), OD_ERR_ARGUMENT);
    cr_expect_eq(od_loader_create(d, &d->train, &(od_loader_options){.batch = 6, .drop_last = true}, &loader),
                 OD_ERR_ARGUMENT);
    cr_expect_null(loader);
    d->train.n = 0;
    cr_expect_eq(od_loader_create(d, &d->train, &(od_loader_options){.batch = 1}, &loader), OD_ERR_ARGUMENT);
    od_loader_destroy(NULL);
    od_dataset_close(d);
}
