/* `offdiag matrix`: a row of a sound device; and that it finds what it is there to find, by running a program whose
 * kernels have faults planted in them (tests/plant_faults.py). Of the checks only as many as that needs: the others are
 * those of the self-test, which has a test of its own. */
#include <criterion/criterion.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "harness.h"
#include "run_cli.h"

TestSuite(matrix, .init = cli_setup, .fini = cli_teardown);

static json_t *parse(const cli_result *r) {
    json_t *root = json_loads(r->out, JSON_REJECT_DUPLICATES, NULL);
    cr_assert(json_is_object(root), "one JSON document and nothing else: %s\n%s", r->out, r->err);
    return root;
}

static const json_t *only_row(const json_t *root) {
    const json_t *devices = json_object_get(root, "devices");
    cr_assert_eq(json_array_size(devices), 1);
    return json_array_get(devices, 0);
}

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static json_int_t number_of(const json_t *object, const char *key) {
    cr_assert(json_is_integer(json_object_get(object, key)), "no integer %s", key);
    return json_integer_value(json_object_get(object, key));
}

/* ---- a sound device ---------------------------------------------------------------------------------------------- */

Test(matrix, a_row_then_its_other_formats) {
    const char *path = in_scratch("quick.json");
    cli_result r = cli("matrix --quick --device auto --kernels cpu --groups pool,loss --json --out %s", path);
    cli_expect(&r, 0, "1 of 1: ");
    cr_assert_str_eq(r.out, "");
    json_t *root = read_json(path);
    const json_t *row = only_row(root);
    cr_assert_eq(number_of(root, "failed"), 0);
    cr_assert_geq(number_of(root, "cases"), 10);
    cr_assert_str_eq(text_of(row, "only"), "--groups pool,loss --kernels cpu");
    cr_assert_eq(number_of(root, "cases"), number_of(row, "cases"));
    cr_assert_geq(number_of(root, "skipped"), 0);
    cr_assert(text_of(json_object_get(row, "device"), "driver")[0], "a capability row");
    r = cli("matrix --merge --markdown %s %s", path, path); /* the same row twice is one row */
    cli_expect(&r, 0, "");
    cr_assert(strncmp(r.out, "| device |", 10) == 0 && strstr(r.out, "\n1 rows, ") && strstr(r.out, " (a part) |"),
              "%s", r.out);
    r = cli("matrix --merge --html %s", path);
    cli_expect(&r, 0, "");
    cr_assert(strstr(r.out, "<!doctype html>") && strstr(r.out, "maxpool_forward") && strstr(r.out, "</html>"));
    cr_assert(!strstr(r.out, "http:") && !strstr(r.out, "https:"), "nothing is loaded from elsewhere");
    r = cli("matrix --merge %s", path);
    cli_expect(&r, 0, "");
    cr_assert(strstr(r.out, " 0 failed"), "%s", r.out);
}

/* A file with one made-up row of two cases, all of it or a part. */
static void spew_part(const char *name, const char *only, const char *date, bool quick, const char *speed) {
    char text[1200];
    const int n = snprintf(
        text, sizeof text,
        "{\"devices\": [{\"row\": \"X\", \"settings\": \"\", \"date\": \"%s\", \"offdiag\": \"0\", \"quick\": %s, "
        "\"host\": {\"processor\": \"P\"}, \"device\": {\"name\": \"D\", \"platform\": \"L\", \"driver\": \"1\", "
        "\"type\": \"cpu\", \"opencl\": \"1.2\"}, \"cases\": 2, \"failed\": 1, \"skipped\": 1, \"operations\": "
        "[{\"operation\": \"%s\", \"family\": \"cpu\", \"cases\": 2, \"failed\": 1, \"skipped\": \"so\"}], "
        "\"failures\": [], \"stopped\": [], \"training\": [], \"speed\": [%s], \"seconds\": 1.5%s%s%s}]}",
        date, quick ? "true" : "false", name, speed, only ? ", \"only\": \"" : "", only ? only : "", only ? "\"" : "");
    cr_assert(n > 0 && (size_t)n < sizeof text);
    spew(in_scratch("%s", name), text, (size_t)n);
}

/* The files' row; they must make one. */
static const json_t *merged(const char *const *names, int count) {
    char files[1000] = "";
    for (int i = 0; i < count; i++)
        (void)snprintf(files + strlen(files), sizeof files - strlen(files), " %s", in_scratch("%s", names[i]));
    cli_result r = cli("matrix --merge --json %s", files);
    cli_expect(&r, 1, "failures in"); /* as the rows say */
    return only_row(parse(&r));
}

/* Rows that were run in parts, on several days or machines of a kind. */
Test(matrix, parts_of_a_row_are_joined) {
    static const char day[] = "2026-01-02", speed[] = "{\"op\": \"gemm\", \"gflop_per_s\": 3}";
    spew_part("ref", "--kernels ref", day, false, "{\"op\": \"gemm\", \"gflop_per_s\": 1}");
    spew_part("cpu", "--kernels cpu", day, false, speed);
    spew_part("gpu", "--kernels gpu", "2026-01-03", false, "");
    spew_part("conv", "--groups conv,dense --kernels gpu", "2026-01-04", false, "");
    spew_part("quick", "--kernels gpu", day, true, "");
    const json_t *row = merged((const char *[]){"ref", "cpu"}, 2);
    cr_assert_eq(number_of(row, "cases"), 4);
    cr_assert_eq(number_of(row, "skipped"), 2);
    cr_assert_str_eq(text_of(row, "only"), "--kernels ref; --kernels cpu");
    row = merged((const char *[]){"ref", "gpu", "cpu"}, 3); /* in any order; nothing is missing */
    cr_assert_null(json_object_get(row, "only"));
    cr_assert_eq(number_of(row, "cases"), 6);
    cr_assert_eq(number_of(row, "failed"), 3);
    cr_assert_str_eq(text_of(row, "date"), "2026-01-03");
    cr_assert_float_eq(json_number_value(json_object_get(row, "seconds")), 4.5, 1e-9);
    cr_assert_eq(json_array_size(json_object_get(row, "operations")), 3);
    const json_t *times = json_object_get(row, "speed"); /* of the device's own family */
    cr_assert_eq(json_integer_value(json_object_get(json_array_get(times, 0), "gflop_per_s")), 3);
    row = merged((const char *[]){"gpu", "conv"}, 2); /* these overlap: the newer one */
    cr_assert_str_eq(text_of(row, "only"), "--groups conv,dense --kernels gpu");
    row = merged((const char *[]){"quick", "cpu"}, 2); /* not of one kind */
    cr_assert_str_eq(text_of(row, "only"), "--kernels cpu");
}

Test(matrix, wrong_usage_and_files) {
    cli_result r = cli("matrix --json --html");
    cli_expect(&r, 2, "--html|one of them");
    r = cli("matrix --groups con");
    cli_expect(&r, 2, "--groups|'con'|'conv'");
    r = cli("matrix --merge");
    cli_expect(&r, 2, "--merge needs");
    r = cli("matrix extra.json");
    cli_expect(&r, 2, "--merge");
    r = cli("matrix --device voodoo");
    cli_expect(&r, 1, "voodoo|there are:");
    r = cli("matrix --merge %s", in_scratch("none.json"));
    cli_expect(&r, 1, "none.json");
    static const char *const bad[] = {"{",
                                      "[]",
                                      "{\"devices\": 3}",
                                      "{\"devices\": [{}]}",
                                      "{\"devices\": [1]}",
                                      "{\"devices\": [{\"row\": \"x\", \"settings\": \"\", \"date\": 7}]}"};
    for (size_t i = 0; i < OD_COUNT(bad); i++) {
        spew(in_scratch("bad.json"), bad[i], strlen(bad[i]));
        r = cli("matrix --merge %s", in_scratch("bad.json"));
        cli_expect(&r, 1, "bad.json");
        cr_assert_str_eq(r.out, "");
    }
}

/* A driver that is not there, one that is no library, and one that ends the process as it is loaded. */
Test(matrix, drivers_that_break_when_they_are_listed) {
    cr_assert_eq(mkdir(in_scratch("vendors"), 0700), 0);
    spew(in_scratch("vendors/bad.icd"), "libnothing-of-that-name.so\n", 27);
    (void)setenv("OCL_ICD_VENDORS", in_scratch("vendors"), 1);
    cli_result r = cli("matrix --quick --device 0:0");
    cli_expect(&r, 1, "");
    cr_assert_str_eq(r.out, "");
}

/* The rows that the README's table is made of. */
Test(matrix, kept_rows_are_whole) {
    const char *source = getenv("OFFDIAG_SOURCE_ROOT");
    char pattern[1024], files[2048] = "";
    glob_t found = {0};
    cr_assert_not_null(source);
    (void)snprintf(pattern, sizeof pattern, "%s/data/matrix/*.json", source);
    cr_assert_eq(glob(pattern, 0, NULL, &found), 0, "no %s", pattern);
    for (size_t i = 0; i < found.gl_pathc; i++)
        (void)snprintf(files + strlen(files), sizeof files - strlen(files), " %s", found.gl_pathv[i]);
    globfree(&found);
    cli_result r = cli("matrix --merge --json %s", files);
    cli_expect(&r, 0, "");
    cr_assert_geq(number_of(parse(&r), "cases"), 3000);
}

/* ---- planted faults ---------------------------------------------------------------------------------------------- */

static void use_faulty_program(void) {
    const char *program = getenv("OFFDIAG_FAULTY_BIN");
    cr_assert_not_null(program, "OFFDIAG_FAULTY_BIN must name the program with planted faults");
    (void)setenv("OFFDIAG_BIN", program, 1);
}

/* A failure of the operation whose reason holds these words. */
static bool is_found(const json_t *row, const char *operation, const char *words) {
    size_t i;
    const json_t *failure;
    json_array_foreach(json_object_get(row, "failures"), i, failure) {
        if (strcmp(text_of(failure, "operation"), operation) == 0 && strstr(text_of(failure, "why"), words))
            return true;
    }
    return false;
}

static json_int_t failed_of(const json_t *row, const char *operation) {
    size_t i;
    const json_t *item;
    json_int_t failed = 0;
    json_array_foreach(json_object_get(row, "operations"), i, item) {
        if (strcmp(text_of(item, "operation"), operation) == 0)
            failed += number_of(item, "failed");
    }
    return failed;
}

Test(matrix, wrong_kernels_are_found) {
    use_faulty_program();
    cli_result r = cli("matrix --quick --device auto --kernels ref --groups pointwise --json");
    cli_expect(&r, 1, "matrix: ");
    json_t *root = parse(&r);
    const json_t *row = only_row(root);
    cr_assert(is_found(row, "relu_backward", "word "), "wrong: %s", r.out);
    cr_assert(is_found(row, "add", "written outside"), "out of bounds: %s", r.out);
    cr_assert(is_found(row, "scale", "x: word 0 of "), "NaN: %s", r.out);
    cr_assert(!is_found(row, "add", "the second run"), "a failure counts once: %s", r.out);
    cr_assert_eq(failed_of(row, "relu_forward") + failed_of(row, "sum") + failed_of(row, "column_sum"), 0,
                 "sound kernels beside them pass: %s", r.out);
    cr_assert_eq(json_array_size(json_object_get(row, "stopped")), 0);
}

/* Each in its child: the groups before and after run. */
Test(matrix, crashes_and_hangs_cost_their_own_rows) {
    use_faulty_program();
    cli_result r = cli("matrix --quick --device auto --kernels ref --groups loss,augment"); /* compiled from here on */
    cli_expect(&r, 0, "");
    r = cli("matrix --quick --device auto --kernels ref --groups pool,loss,optim,augment --timeout 8 --json");
    cli_expect(&r, 1, "matrix: ");
    json_t *root = parse(&r);
    const json_t *row = only_row(root), *stopped = json_object_get(row, "stopped"), *crash = NULL, *hang = NULL, *item;
    size_t i;
    json_array_foreach(stopped, i, item) {
        if (strcmp(text_of(item, "group"), "pool") == 0)
            crash = item;
        if (strcmp(text_of(item, "group"), "optim") == 0)
            hang = item;
    }
    cr_assert(crash && strstr(text_of(crash, "how"), "killed by signal"), "%s", r.out);
    cr_assert(strstr(text_of(crash, "case"), "maxpool_forward: "), "the open case: %s", r.out);
    cr_assert(hang && strstr(text_of(hang, "how"), "no sign of life"), "%s", r.out);
    cr_assert(strstr(text_of(hang, "case"), "offdiag_head: "), "%s", r.out);
    cr_assert(is_found(row, "pool", "killed by signal") && is_found(row, "optim", "no sign of life"));
    cr_assert_eq(failed_of(row, "cosine_loss") + failed_of(row, "augment"), 0);
    cr_assert(strstr(r.out, "\"operation\": \"augment\""), "what comes after a hang runs: %s", r.out);
}

/* Only a simulator sees every race; the determinism check of the self-test has a test of its own. */
Test(matrix, races_are_found) {
    if (system("command -v oclgrind >/dev/null 2>&1") != 0) /* NOLINT(cert-env33-c, concurrency-mt-unsafe) */
        cr_skip_test("Oclgrind is not installed");
    use_faulty_program();
    cli_result r = cli("matrix --quick --device data-races --kernels ref --groups pointwise --json");
    cli_expect(&r, 1, "matrix: ");
    const json_t *row = only_row(parse(&r));
    cr_assert(is_found(row, "axpy", "data race"), "%s", r.out);
    cr_assert(is_found(row, "add", "written outside"), "%s", r.out);
}
