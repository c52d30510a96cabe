/* CIFAR-100, STL-10, single pictures against torchvision's values, hostile pictures, and folders of them with their
 * cache. All files are small and written here. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/safetensors.h"
#include "data/reader.h"
#include "harness.h"
#include "od_config.h"
#include "run_cli.h"
#include "scratch.h"

TestSuite(images, .init = scratch_init, .fini = scratch_remove);

static void make_dir(const char *path) {
    cr_assert_eq(mkdir(path, 0700), 0, "%s", path);
}

/* ---- CIFAR-100, STL-10 ------------------------------------------------------------------------------------------ */

/* Files of the right size, made of holes, with one record each that tells the label bytes apart. */
Test(images, cifar100) {
    od_dataset *d;
    const struct {
        const char *file;
        off_t bytes;
    } files[] = {{"train.bin", 153700000}, {"test.bin", 30740000}};
    for (int i = 0; i < 2; i++) {
        const uint8_t record[] = {(uint8_t)(3 + i), (uint8_t)(77 + i), 9};
        spew(scratch_path(files[i].file), record, sizeof record);
        cr_assert_eq(truncate(scratch_path(files[i].file), files[i].bytes), 0);
    }
    OD_MUST(od_dataset_open("cifar100", scratch_dir, 0, &d));
    cr_expect(d->train.n == 50000 && d->test.n == 10000 && d->classes == 100 && d->h == 32 && d->c == 3);
    cr_expect(d->train.labels[0] == 77 && d->test.labels[0] == 78 && d->train.images[0] == 9 && !d->train.images[1]);
    cr_expect_str_eq(d->class_names[99], "worm");
    od_dataset_close(d);
    OD_MUST(od_dataset_open("cifar100-coarse", scratch_dir, 0, &d));
    cr_expect(d->classes == 20 && d->train.labels[0] == 3 && d->test.labels[0] == 4);
    cr_expect_str_eq(d->class_names[19], "vehicles_2");
    od_dataset_close(d);
}

Test(images, real_cifar100) {
    const char *dir = getenv("OFFDIAG_CIFAR100");
    if (!dir)
        cr_skip_test("OFFDIAG_CIFAR100 does not name cifar-100-binary");
    od_dataset *d;
    for (int coarse = 0; coarse < 2; coarse++) {
        int per_class[100] = {0};
        double sum[3] = {0};
        OD_MUST(od_dataset_open(coarse ? "cifar100-coarse" : "cifar100", dir, 0, &d));
        for (int i = 0; i < d->train.n; i++)
            per_class[d->train.labels[i]]++;
        for (int k = 0; k < d->classes; k++)
            cr_expect_eq(per_class[k], 50000 / d->classes);
        for (size_t i = 0; i < (size_t)50000 * 1024 * 3; i++)
            sum[i % 3] += d->train.images[i];
        for (int k = 0; k < 3; k++)
            cr_expect_float_eq(sum[k] / 255 / 50000 / 1024, d->mean[k], 1e-4);
        od_dataset_close(d);
    }
}

enum { STL = 27648, STL_TRAIN = 12, STL_UNLABELED = 70, STL_TEST = 5 };

static uint8_t stl_pixel(int image, int k, int x, int y) {
    return (uint8_t)(image * 31 + k * 80 + x * 2 + y * 5 + x * y / 7);
}

/* n images, numbered from `first`; planes column by column. */
static void put_stl(const char *name, int first, int n) {
    uint8_t *bytes = malloc((size_t)n * STL), *to = bytes;
    cr_assert(bytes);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 3; k++)
            for (int x = 0; x < 96; x++)
                for (int y = 0; y < 96; y++)
                    *to++ = stl_pixel(first + i, k, x, y);
    spew(scratch_path(name), bytes, (size_t)n * STL);
    free(bytes);
}

static void put_stl_labels(const char *name, int n) {
    uint8_t labels[STL_TRAIN];
    for (int i = 0; i < n; i++)
        labels[i] = (uint8_t)(1 + i % 10);
    spew(scratch_path(name), labels, (size_t)n);
}

static void put_stl_files(void) {
    put_stl("train_X.bin", 0, STL_TRAIN);
    put_stl("unlabeled_X.bin", STL_TRAIN, STL_UNLABELED);
    put_stl("test_X.bin", 100, STL_TEST);
    put_stl_labels("train_y.bin", STL_TRAIN);
    put_stl_labels("test_y.bin", STL_TEST);
    spew(scratch_path("fold_indices.txt"), "0 5 11 \n1 2 3\n", 14);
}

static void check_stl(const od_dataset *d) {
    cr_assert(d->train.n == STL_TRAIN + STL_UNLABELED && d->test.n == STL_TEST && d->h == 96 && d->classes == 10);
    cr_expect_eq(od_split_labelled(&d->train), STL_TRAIN);
    cr_expect_eq(od_split_labelled(&d->test), STL_TEST);
    for (int i = 0; i < d->train.n; i++)
        cr_expect_eq(d->train.labels[i], i < STL_TRAIN ? i % 10 : -1);
    for (int i = 0; i < d->train.n; i += 9)
        for (int y = 0; y < 96; y += 5)
            for (int x = 0; x < 96; x += 7)
                for (int k = 0; k < 3; k++)
                    cr_assert_eq(d->train.images[(size_t)i * STL + (size_t)(y * 96 + x) * 3 + (size_t)k],
                                 stl_pixel(i, k, x, y));
    cr_expect_eq(d->test.images[4 * STL + 3 * 7], stl_pixel(104, 0, 7, 0));
}

static char *cache_file(void) {
    static char path[600];
    DIR *dir = opendir(scratch_path("offdiag/datasets"));
    path[0] = '\0';
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (strstr(e->d_name, ".images"))
            (void)snprintf(path, sizeof path, "%s/offdiag/datasets/%s", scratch_dir, e->d_name);
    if (dir)
        (void)closedir(dir);
    return path;
}

Test(images, stl10) {
    od_dataset *d;
    put_stl_files();
    OD_MUST(od_dataset_open("stl10", scratch_dir, 0, &d));
    check_stl(d);
    const int32_t folds[] = {0, 5, 11, 1, 2, 3};
    cr_assert(d->folds.count == 2 && d->folds.size == 3);
    cr_expect_arr_eq(d->folds.indices, folds, sizeof folds);
    double sum = 0;
    for (size_t i = 1; i < (size_t)d->train.n * STL; i += 3)
        sum += d->train.images[i];
    cr_expect_float_eq(sum / 255 / d->train.n / 9216, d->mean[1], 1e-6);
    OD_MUST(od_dataset_downsample(d, 3)); /* works on the map, and leaves the file */
    od_dataset_close(d);
    OD_MUST(od_dataset_open("stl10", scratch_dir, 0, &d)); /* from the cache */
    check_stl(d);
    od_split_limit(&d->train, 20);
    cr_expect_eq(od_split_labelled(&d->train), STL_TRAIN);
    od_dataset_close(d);
}

/* Any damaged byte or length of the cache's file leads to the files themselves. */
Test(images, damaged_cache) {
    od_dataset *d;
    size_t bytes = 0;
    put_stl_files();
    OD_MUST(od_dataset_open("stl10", scratch_dir, 0, &d));
    od_dataset_close(d);
    char *whole = slurp(cache_file(), &bytes);
    cr_assert(whole && bytes > 87 * STL);
    const size_t places[] = {0, 8, 13, 25, 40, 60, 5000, bytes / 2, bytes - 4, bytes - 1};
    for (size_t i = 0; i < OD_COUNT(places) + 3; i++) {
        size_t length = i < OD_COUNT(places) ? bytes : i == OD_COUNT(places) ? bytes - 1 : 4096 * (i % 2);
        if (i < OD_COUNT(places))
            whole[places[i]] ^= 0x41;
        spew(cache_file(), whole, length);
        if (i < OD_COUNT(places))
            whole[places[i]] ^= 0x41;
        OD_MUST(od_dataset_open("stl10", scratch_dir, 0, &d));
        check_stl(d);
        od_dataset_close(d);
        size_t again = 0;
        char *made = slurp(cache_file(), &again);
        cr_assert(again == bytes && memcmp(made, whole, bytes) == 0, "case %zu: the cache was not made anew", i);
        free(made);
    }
}

/* Without a place for a cache the images are kept in memory. */
Test(images, no_cache) {
    od_dataset *d;
    put_stl_files();
    spew(scratch_path("file"), "x", 1);
    (void)setenv("XDG_CACHE_HOME", scratch_path("file/no"), 1);
    OD_MUST(od_dataset_open("stl10", scratch_dir, 0, &d));
    check_stl(d);
    od_dataset_close(d);
}

static void expect_bad(const char *name, const char *words) {
    od_dataset *d = NULL;
    od_status status = od_dataset_open(name, scratch_dir, 16, &d);
    cr_expect_eq(status, OD_ERR_FORMAT, "%s: status %d, %s", words, status, od_error_message());
    cr_expect(status && strstr(od_error_message(), words), "'%s' does not say '%s'", od_error_message(), words);
    od_dataset_close(d);
}

Test(images, bad_stl10) {
    put_stl_files();
    spew(scratch_path("fold_indices.txt"), "0 5 12\n", 7);
    expect_bad("stl10", "indices from 0 to 11, found '12");
    spew(scratch_path("fold_indices.txt"), "0 5\n1\n", 6);
    expect_bad("stl10", "found 1 in line 2");
    spew(scratch_path("fold_indices.txt"), "0 5", 3);
    expect_bad("stl10", "cut off");
    (void)unlink(scratch_path("fold_indices.txt"));
    spew(scratch_path("train_y.bin"), "\1\2\3", 3);
    expect_bad("stl10", "expected 12 bytes, found only 3");
    spew(scratch_path("train_y.bin"), "\1\2\3\4\5\6\7\1\1\1\1\13", 12);
    expect_bad("stl10", "found 11 at item 11");
    put_stl_labels("train_y.bin", STL_TRAIN);
    cr_assert_eq(truncate(scratch_path("test_X.bin"), STL + 1), 0);
    expect_bad("stl10", "multiple of 27648");
    put_stl("test_X.bin", 100, STL_TEST);
    (void)unlink(scratch_path("unlabeled_X.bin"));
    od_dataset *d;
    OD_MUST(od_dataset_open("stl10", scratch_dir, 0, &d));
    cr_expect_eq(d->train.n, STL_TRAIN);
    od_dataset_close(d);
}

/* ---- pictures --------------------------------------------------------------------------------------------------- */

#if OD_HAVE_JPEG && OD_HAVE_PNG
static od_safetensors *open_golden(void) {
    char path[1024];
    od_safetensors *file;
    const char *root = getenv("OFFDIAG_SOURCE_ROOT");
    (void)snprintf(path, sizeof path, "%s/tests/golden/images.safetensors", root ? root : ".");
    OD_MUST(od_safetensors_open(path, &file));
    return file;
}

/* Tensor "index.what"; malloc'd, NULL where there is none. */
static uint8_t *golden_bytes(const od_safetensors *file, int index, const char *what, size_t *bytes) {
    char name[32];
    (void)snprintf(name, sizeof name, "%d.%s", index, what);
    const od_tensor *t = od_safetensors_find(file, name);
    if (!t)
        return NULL;
    uint8_t *data = malloc(t->bytes);
    cr_assert(data);
    OD_MUST(od_safetensors_read(file, t, data));
    *bytes = t->bytes;
    return data;
}

static int side_of(size_t out_bytes) {
    int side = 1;
    while ((size_t)side * side * 3 < out_bytes)
        side++;
    return side;
}

/* As torchvision on Pillow, to 2 of 255: Pillow rounds between the two axes. */
Test(images, as_torchvision) {
    od_safetensors *file = open_golden();
    size_t bytes, out_bytes;
    int cases = 0;
    for (uint8_t *data; (data = golden_bytes(file, cases, "file", &bytes)); cases++) {
        uint8_t *expected = golden_bytes(file, cases, "out", &out_bytes), *out = malloc(out_bytes);
        int worst = 0;
        spew(scratch_path("picture"), data, bytes);
        OD_MUST(od_image_decode(scratch_path("picture"), out, side_of(out_bytes)));
        for (size_t i = 0; i < out_bytes; i++)
            worst = abs(out[i] - expected[i]) > worst ? abs(out[i] - expected[i]) : worst;
        cr_expect_leq(worst, 2, "picture %d: off by %d", cases, worst);
        free(data);
        free(expected);
        free(out);
    }
    cr_expect_eq(cases, 13);
    od_safetensors_close(file);
}

/* Cut at every length, and with bytes changed: an error or a picture, in little memory and time. A cut one is never
 * taken for whole. */
Test(images, damaged_pictures) {
    od_safetensors *file = open_golden();
    uint8_t out[24 * 24 * 3];
    size_t bytes = 0, failed = 0, tried = 0;
    const struct rlimit limit = {1 << 30, 1 << 30};
    cr_assert_eq(setrlimit(RLIMIT_AS, &limit), 0);
    for (int c = 0; c < 13; c++) {
        uint8_t *data = golden_bytes(file, c, "file", &bytes);
        for (size_t length = 0; length + 12 < bytes; length += 1 + bytes / 40) {
            spew(scratch_path("picture"), data, length);
            cr_expect_neq(od_image_decode(scratch_path("picture"), out, 24), OD_OK, "picture %d, %zu of %zu bytes", c,
                          length, bytes);
        }
        for (uint32_t round = 0; round < 60; round++, tried++) {
            uint32_t random[4];
            od_data_index(random, 4, 1u << 30, round, (uint32_t)c);
            size_t at = random[0] % (round % 2 && bytes > 200 ? 200 : bytes);
            uint8_t old = data[at];
            data[at] = (uint8_t)random[1];
            spew(scratch_path("picture"), data, bytes);
            od_status status = od_image_decode(scratch_path("picture"), out, 24);
            cr_assert(status == OD_OK || status == OD_ERR_FORMAT, "%s", od_error_message());
            failed += status != OD_OK;
            data[at] = old;
        }
        free(data);
    }
    cr_expect(failed > tried / 10 && failed < tried, "%zu of %zu failed", failed, tried);
    od_safetensors_close(file);
}

/* A header that claims 65,000 x 65,000 pixels over a few bytes is refused before memory or time goes into it. */
Test(images, huge_claims) {
    od_safetensors *file = open_golden();
    uint8_t out[24 * 24 * 3];
    size_t bytes = 0;
    const struct rlimit limit = {1 << 30, 1 << 30};
    cr_assert_eq(setrlimit(RLIMIT_AS, &limit), 0);
    for (int c = 8; c < 13; c++) { /* the JPEGs */
        uint8_t *data = golden_bytes(file, c, "file", &bytes);
        for (size_t i = 0; i + 9 < bytes; i++)
            if (data[i] == 0xff && (data[i + 1] == 0xc0 || data[i + 1] == 0xc2)) {
                memset(data + i + 5, 0xfd, 4);
                break;
            }
        spew(scratch_path("picture"), data, bytes);
        cr_expect_eq(od_image_decode(scratch_path("picture"), out, 24), OD_ERR_FORMAT);
        cr_expect(strstr(od_error_message(), "claims 65021 x 65021"), "%s", od_error_message());
        free(data);
    }
    static const uint8_t png[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n', 0,    0, 0,    13,
                                  'I',  'H', 'D', 'R', 0,    0,    0xfd, 0xe8, 0,    0, 0xfd, 0xe8,
                                  8,    2,   0,   0,   0,    0x29, 0x2e, 0x28, 0x3f, 0, 0,    0,
                                  0,    'I', 'D', 'A', 'T',  0x35, 0xaf, 0x06, 0x1e};
    spew(scratch_path("picture"), png, sizeof png);
    cr_expect_eq(od_image_decode(scratch_path("picture"), out, 24), OD_ERR_FORMAT, "%s", od_error_message());
    od_safetensors_close(file);
}

/* ---- folders ---------------------------------------------------------------------------------------------------- */

static void put_picture(const od_safetensors *file, int c, const char *path) {
    size_t bytes = 0;
    uint8_t *data = golden_bytes(file, c, "file", &bytes);
    spew(path, data, bytes);
    free(data);
}

/* Two classes of ten pictures of mixed sizes and kinds, an empty one, two that do not decode, and other files. */
static void make_folder(void) {
    od_safetensors *file = open_golden();
    char path[64];
    make_dir(scratch_path("set"));
    make_dir(scratch_path("set/empty"));
    for (int k = 0; k < 2; k++) {
        (void)snprintf(path, sizeof path, "set/%s", k ? "dog" : "cat");
        make_dir(scratch_path(path));
        for (int i = 0; i < 10; i++) {
            (void)snprintf(path, sizeof path, "set/%s/%d.%s", k ? "dog" : "cat", i, i % 2 ? "png" : "JPG");
            put_picture(file, (i + 3 * k) % 13, scratch_path(path));
        }
    }
    spew(scratch_path("set/cat/x-broken.jpg"), "no picture", 10);
    spew(scratch_path("set/dog/x-broken.png"), "\x89PNG\r\n\x1a\n", 8);
    spew(scratch_path("set/dog/notes.txt"), "text", 4);
    spew(scratch_path("set/.hidden.png"), "x", 1);
    od_safetensors_close(file);
}

static void check_folder(const od_dataset *d) {
    int per_class[2] = {0};
    cr_assert(d->classes == 2 && d->h == 16 && d->w == 16 && d->c == 3);
    cr_expect_str_eq(d->class_names[0], "cat");
    cr_expect_str_eq(d->class_names[1], "dog");
    cr_expect(d->train.n == 18 && d->test.n == 2 && d->skipped == 2, "%d, %d, %d", d->train.n, d->test.n, d->skipped);
    for (int i = 0; i < d->train.n; i++)
        per_class[d->train.labels[i]]++;
    cr_expect(per_class[0] == 9 && per_class[1] == 9);
    cr_expect_eq(d->test.labels[0] + d->test.labels[1], 1);
    cr_expect(d->mean[0] > 0.2f && d->mean[0] < 0.8f && d->std[0] > 0.1f);
}

Test(images, folder) {
    od_dataset *d;
    make_folder();
    OD_MUST(od_dataset_open("folder", scratch_path("set"), 16, &d));
    check_folder(d);
    size_t bytes = (size_t)d->train.n * 16 * 16 * 3;
    uint8_t *first = malloc(bytes);
    memcpy(first, d->train.images, bytes);
    od_dataset_close(d);
    OD_MUST(od_dataset_open("folder", scratch_path("set"), 16, &d)); /* from the cache */
    check_folder(d);
    cr_expect_arr_eq(d->train.images, first, bytes);
    od_dataset_close(d);
    free(first);
    od_safetensors *file = open_golden();
    put_picture(file, 5, scratch_path("set/cat/x-broken.jpg")); /* another content: another key */
    od_safetensors_close(file);
    OD_MUST(od_dataset_open("folder", scratch_path("set"), 16, &d));
    cr_expect(d->train.n == 19 && d->skipped == 1);
    od_dataset_close(d);
}

Test(images, folder_of_splits_and_without_classes) {
    od_dataset *d;
    od_safetensors *file = open_golden();
    make_dir(scratch_path("set"));
    for (int i = 0; i < 3; i++) {
        char path[64];
        (void)snprintf(path, sizeof path, "set/%d.png", i);
        put_picture(file, i, scratch_path(path));
    }
    OD_MUST(od_dataset_open("folder", scratch_path("set"), 16, &d));
    cr_expect(d->train.n == 3 && d->test.n == 0 && d->classes == 1 && od_split_labelled(&d->train) == 0);
    od_dataset_close(d);
    const char *dirs[] = {"set/train", "set/train/a", "set/train/b", "set/val", "set/val/b", "set/val/c"};
    for (size_t i = 0; i < OD_COUNT(dirs); i++)
        make_dir(scratch_path(dirs[i]));
    put_picture(file, 1, scratch_path("set/train/a/1.png"));
    put_picture(file, 2, scratch_path("set/train/b/1.png"));
    put_picture(file, 3, scratch_path("set/val/b/1.png"));
    put_picture(file, 4, scratch_path("set/val/c/1.png")); /* a class that training does not have */
    OD_MUST(od_dataset_open("folder", scratch_path("set"), 16, &d));
    cr_expect(d->train.n == 2 && d->test.n == 1 && d->classes == 2 && d->test.labels[0] == 1);
    od_dataset_close(d);
    od_safetensors_close(file);
}

Test(images, bad_folders) {
    od_dataset *d;
    cr_expect_eq(od_dataset_open("folder", NULL, 16, &d), OD_ERR_USAGE);
    cr_expect_eq(od_dataset_open("folder", scratch_path("none"), 16, &d), OD_ERR_IO);
    expect_bad("folder", "found none");
    make_dir(scratch_path("cat"));
    spew(scratch_path("cat/1.png"), "x", 1);
    spew(scratch_path("cat/2.jpg"), "\xff\xd8\xff", 3);
    expect_bad("folder", "none of the 2 training images could be decoded");
    cr_expect_str_empty(cache_file());
}
#endif
