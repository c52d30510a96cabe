/* Whole runs on data sets other than the tiny one: STL-10 at 96x96, and a folder of pictures some of which are broken.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/safetensors.h"
#include "harness.h"
#include "od_config.h"
#include "run_cli.h"

TestSuite(pipeline, .init = cli_setup, .fini = cli_teardown);

/* The prepared images that a run with OFFDIAG_LOG=cache says it found; unlinked, as they lie in the cache of all tests.
 */
static void forget_prepared(const cli_result *r) {
    static const char said[] = ": prepared images are there";
    const char *end = strstr(r->err, said), *begin = end;
    cr_assert_not_null(end, "the prepared images were not used again: %s", r->err);
    while (begin > r->err && begin[-1] != '\n' && begin[-1] != ' ')
        begin--;
    char *path = strndup(begin, (size_t)(end - begin));
    cr_assert(strstr(path, "/datasets/") && unlink(path) == 0, "%s", path);
    free(path);
}

static double loss_of(const char *run, int step) {
    return json_number_value(json_object_get(metrics_line(run, "step", step), "loss"));
}

/* ---- STL-10 ----------------------------------------------------------------------------------------------------- */

enum { STL_PIXELS = 96 * 96, STL_TRAIN = 20, STL_UNLABELED = 12, STL_TEST = 10 };

/* n images, planes column by column; a class is a direction of waves. */
static void put_stl(const char *name, int n) {
    unsigned char *bytes = malloc((size_t)n * 3 * STL_PIXELS), *to = bytes;
    unsigned state = 1;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 3; k++)
            for (int x = 0; x < 96; x++)
                for (int y = 0; y < 96; y++) {
                    state = state * 1664525u + 1013904223u;
                    *to++ = (unsigned char)(60 + 20 * k + (x * (i % 10) + y * (10 - i % 10)) / 2 % 60 + (state >> 27));
                }
    spew(in_scratch("stl/%s", name), bytes, (size_t)n * 3 * STL_PIXELS);
    free(bytes);
}

static void put_stl_files(void) {
    unsigned char labels[STL_TRAIN];
    cr_assert_eq(mkdir(in_scratch("stl"), 0700), 0);
    for (int i = 0; i < STL_TRAIN; i++)
        labels[i] = (unsigned char)(1 + i % 10);
    put_stl("train_X.bin", STL_TRAIN);
    put_stl("unlabeled_X.bin", STL_UNLABELED);
    put_stl("test_X.bin", STL_TEST);
    spew(in_scratch("stl/train_y.bin"), labels, STL_TRAIN);
    spew(in_scratch("stl/test_y.bin"), labels, STL_TEST);
    static const char folds[] = "0 1 2 3 4 5 6 7 8 9\n10 11 12 13 14 15 16 17 18 19\n";
    spew(in_scratch("stl/fold_indices.txt"), folds, sizeof folds - 1);
}

/* Three steps of BYOL as its recipe has it at 96 pixels, over labelled and unlabeled images; kNN and folds after it. */
Test(pipeline, stl10_at_96_pixels) {
    put_stl_files();
    cli_result r =
        cli("train --dataset stl10 --data %s --out %s --encoder resnet18 --stem imagenet --width 4 --method byol "
            "--augment byol-blur --head mlp --head-hidden 8 --proj-hidden 16 --proj-dim 8 --batch 8 --steps 3 "
            "--warmup 0 --knn-k 3",
            in_scratch("stl"), in_scratch("run"));
    cli_expect(&r, 0, "32 training and 10 test images of 96x96");
    cr_assert_eq(metrics_count("run", "step"), 3);
    for (int i = 0; i < 3; i++)
        cr_assert(loss_of("run", i) > 0 && loss_of("run", i) < 4, "loss %g of step %d", loss_of("run", i), i);
    (void)setenv("OFFDIAG_LOG", "cache", 1);
    r = cli("eval %s --protocol linear --folds --epochs 2 --lr 0.1 --json", in_scratch("run"));
    cli_expect(&r, 0, "");
    forget_prepared(&r);
    json_t *eval = json_loads(r.out, 0, NULL);
    cr_assert_eq(json_integer_value(json_object_get(eval, "folds")), 2);
    cr_assert_eq(json_integer_value(json_object_get(eval, "queries")), STL_TEST);
}

/* ---- a folder --------------------------------------------------------------------------------------------------- */

/* Picture c of tests/golden/images.safetensors as a file. */
static void put_picture(const od_safetensors *golden, int c, const char *path) {
    char name[32];
    (void)snprintf(name, sizeof name, "%d.file", c);
    const od_tensor *t = od_safetensors_find(golden, name);
    cr_assert_not_null(t, "%s", name);
    void *bytes = malloc(t->bytes);
    OD_MUST(od_safetensors_read(golden, t, bytes));
    spew(path, bytes, t->bytes);
    free(bytes);
}

#if OD_HAVE_JPEG && OD_HAVE_PNG
/* Broken pictures, mixed sizes and an empty class cost a word each, not the run. */
Test(pipeline, a_folder_with_broken_pictures) {
    static const char *const classes[] = {"cat", "dog", "empty"};
    const char *root = getenv("OFFDIAG_SOURCE_ROOT");
    od_safetensors *golden = NULL;
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/tests/golden/images.safetensors", root ? root : ".");
    OD_MUST(od_safetensors_open(path, &golden));
    cr_assert_eq(mkdir(in_scratch("set"), 0700), 0);
    for (int k = 0; k < 3; k++) {
        cr_assert_eq(mkdir(in_scratch("set/%s", classes[k]), 0700), 0);
        for (int i = 0; i < 10 && k < 2; i++)
            put_picture(golden, (i + 3 * k) % 13, in_scratch("set/%s/%d.%s", classes[k], i, i % 2 ? "png" : "jpg"));
    }
    od_safetensors_close(golden);
    spew(in_scratch("set/cat/x-broken.jpg"), "no picture", 10);
    cli_result r =
        cli("train --dataset folder --data %s --out %s --image-side 16 --image-size 16 --encoder cnn4 --width 4 "
            "--head-hidden 8 --proj-hidden 16 --proj-dim 8 --batch 8 --steps 3 --warmup 0 --knn-k 3",
            in_scratch("set"), in_scratch("run"));
    cli_expect(&r, 0,
               "18 training and 2 test images of 16x16|x-broken.jpg|1 image that did not decode is left out|empty");
    cr_assert_eq(metrics_count("run", "step"), 3);
    (void)setenv("OFFDIAG_LOG", "cache", 1);
    r = cli("embed %s --out %s --labels %s", in_scratch("run"), in_scratch("f.npy"), in_scratch("l.npy"));
    cli_expect(&r, 0, "");
    forget_prepared(&r);
    cr_assert(strstr(r.out, "2 x 16"), "%s", r.out);
}
#endif
