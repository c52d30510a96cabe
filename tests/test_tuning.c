/* The tuning database: which row counts, what a bad row does, and that a row reaches the kernel. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"
#include "ops/tunable.h"
#include "scratch.h"

/* A table of its own, so that no test depends on what a variant's parameters are. */
static const od_tuning_table table = {
    .variant = "test_variant",
    .shape = "a letter",
    .parameters = {{"tile", OD_TUNING_VALUES(2, 4, 8), "4"}, {"depth", OD_TUNING_VALUES(1, 2), "1"}},
    .count = 2};

static void init(void) {
    scratch_init();
    (void)setenv("XDG_DATA_HOME", scratch_dir, 1);
    (void)unsetenv("OFFDIAG_TUNING");
}

/* The user's file with these rows. */
static void user_rows(const char *rows) {
    cr_assert(mkdir(scratch_path("offdiag"), 0700) == 0 || access(scratch_path("offdiag"), F_OK) == 0);
    FILE *file = fopen(scratch_path("offdiag/tuning.json"), "w");
    cr_assert_not_null(file);
    (void)fprintf(file, "{\"format\": \"offdiag-tuning-1\", \"rows\": [%s]}", rows);
    cr_assert_eq(fclose(file), 0);
}

/* tile * 10 + depth of a class on a fresh device; 0 added when a row counted: negative if none did. */
static int looked_up(const char *shape) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    int values[OD_TUNING_PARAMETERS] = {4, 1};
    const bool row = od_tuning_lookup(device, &table, shape, values);
    const int result = values[0] * 10 + values[1];
    return row ? result : -result;
}

#define ROW(key, shape, parameters)                                                                                    \
    "{" key "\"variant\": \"test_variant\", \"shape\": \"" shape "\", \"parameters\": {" parameters "}}"

static void vendor_key(char *out, size_t size, const char *key, const char *value) {
    (void)snprintf(out, size, "\"%s\": \"%s\", ", key, value);
}

Test(tuning, defaults_without_rows, .init = init, .fini = scratch_remove) {
    cr_assert_eq(looked_up("a"), -41);
}

Test(tuning, a_row_replaces_what_it_sets, .init = init, .fini = scratch_remove) {
    user_rows(ROW("", "a", "\"tile\": 8") "," ROW("", "*", "\"depth\": 2"));
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    int values[OD_TUNING_PARAMETERS] = {4, 1};
    cr_assert(od_tuning_lookup(device, &table, "a", values));
    cr_assert(values[0] == 8 && values[1] == 1, "an exact class comes before *: %d %d", values[0], values[1]);
    values[0] = 4;
    cr_assert(od_tuning_lookup(device, &table, "b", values));
    cr_assert(values[0] == 4 && values[1] == 2, "*: %d %d", values[0], values[1]);
}

Test(tuning, device_before_architecture_before_any, .init = init, .fini = scratch_remove) {
    od_device *probe = NULL;
    OD_MUST(od_device_open(getenv("OFFDIAG_TEST_DEVICE") ? getenv("OFFDIAG_TEST_DEVICE") : "auto", NULL, &probe));
    const od_device_info info = *od_device_get_info(probe);
    od_device_close(probe);
    char device[600], architecture[600], rows[4096];
    vendor_key(device, sizeof device, "device", info.name);
    vendor_key(architecture, sizeof architecture, "architecture", info.architecture);
    (void)snprintf(
        rows, sizeof rows,
        "{\"variant\": \"test_variant\", \"shape\": \"a\", \"parameters\": {\"tile\": 2}},"
        "{%s\"variant\": \"test_variant\", \"shape\": \"a\", \"parameters\": {\"tile\": 8}},"
        "{%s\"variant\": \"test_variant\", \"shape\": \"a\", \"parameters\": {\"tile\": 8, \"depth\": 2}},"
        "{\"device\": \"Nobody's\", \"variant\": \"test_variant\", \"shape\": \"a\", \"parameters\": {\"tile\": 2}}",
        architecture, device);
    user_rows(rows);
    cr_assert_eq(looked_up("a"), 82);
}

Test(tuning, off_means_defaults, .init = init, .fini = scratch_remove) {
    user_rows(ROW("", "a", "\"tile\": 8"));
    (void)setenv("OFFDIAG_TUNING", "off", 1);
    cr_assert_eq(looked_up("a"), -41);
}

Test(tuning, bad_rows_are_ignored, .init = init, .fini = scratch_remove) {
    static const char *const bad[] = {
        ROW("", "a", "\"tile\": 3"),                /* a value that is not allowed */
        ROW("", "a", "\"tile\": 99999999999"),      /* more than 32 bits */
        ROW("", "a", "\"tile\": \"8\""),            /* a string */
        ROW("", "a", "\"no_such\": 8"),             /* an unknown name */
        ROW("\"device\": 7, ", "a", "\"tile\": 8"), /* a device that is a number */
        ROW("\"device\": \"\", ", "a", "\"tile\": 8"),
        "{\"variant\": \"test_variant\"}",
        "[]",
        "7",
        "null",
    };
    char rows[8192] = "";
    for (size_t i = 0, at = 0; i < OD_COUNT(bad); i++)
        at += (size_t)snprintf(rows + at, sizeof rows - at, "%s%s", i ? "," : "", bad[i]);
    user_rows(rows);
    cr_assert_eq(looked_up("a"), -41);
}

Test(tuning, a_corrupt_file_is_ignored, .init = init, .fini = scratch_remove) {
    user_rows(ROW("", "a", "\"tile\": 8") "}]"); /* no JSON */
    cr_assert_eq(looked_up("a"), -41);
}

Test(tuning, a_corrupt_file_is_not_replaced, .init = init, .fini = scratch_remove) {
    od_tuning_row row = {.key = OD_TUNING_ANY, .variant = "test_variant", .shape = "a", .count = 0};
    char before[256] = "", after[256] = "";
    user_rows("\"cut off\" ");
    FILE *file = fopen(scratch_path("offdiag/tuning.json"), "r+");
    cr_assert(file && fputc('?', file) != EOF && fclose(file) == 0);
    for (int i = 0; i < 2; i++) {
        file = fopen(scratch_path("offdiag/tuning.json"), "r");
        cr_assert(file && fgets(i ? after : before, 256, file) && fclose(file) == 0);
        if (!i)
            cr_assert_neq(od_tuning_user_keep(&row), OD_OK);
    }
    cr_assert_str_eq(after, before);
}

Test(tuning, kept_rows_come_back, .init = init, .fini = scratch_remove) {
    od_tuning_row row = {
        .key = OD_TUNING_VENDOR, .match = "Acme", .variant = "test_variant", .shape = "a", .count = 1, .gain = 1.25};
    (void)snprintf(row.settings[0].name, sizeof row.settings[0].name, "tile");
    row.settings[0].value = 8;
    OD_MUST(od_tuning_user_keep(&row));
    row.settings[0].value = 2; /* in place of the first */
    OD_MUST(od_tuning_user_keep(&row));
    od_tuning_row *rows = NULL;
    size_t count = 0;
    OD_MUST(od_tuning_user_rows(&rows, &count));
    cr_assert_eq(count, 1);
    cr_assert(rows[0].key == OD_TUNING_VENDOR && strcmp(rows[0].match, "Acme") == 0 && rows[0].settings[0].value == 2 &&
              rows[0].gain == 1.25);
    free(rows);
    struct stat info;
    cr_assert_eq(stat(scratch_path("offdiag"), &info), 0);
    cr_assert_eq(info.st_mode & 0777, 0700);
    row.count = 0;
    OD_MUST(od_tuning_user_keep(&row));
    OD_MUST(od_tuning_user_rows(&rows, &count));
    cr_assert_eq(count, 0);
    free(rows);
}

static void fingerprint(char out[9]) {
    const char *spec = getenv("OFFDIAG_TEST_DEVICE");
    od_device *device = NULL;
    OD_MUST(od_device_open(spec && *spec ? spec : "auto", NULL, &device));
    od_tuning_fingerprint(device, out);
    od_device_close(device);
}

Test(tuning, other_rows_have_another_fingerprint, .init = init, .fini = scratch_remove) {
    char shipped[9], again[9], more[9], none[9];
    fingerprint(shipped);
    fingerprint(again);
    user_rows(ROW("", "a", "\"tile\": 8"));
    fingerprint(more);
    (void)setenv("OFFDIAG_TUNING", "off", 1);
    fingerprint(none);
    cr_assert_str_eq(shipped, again);
    cr_assert_str_neq(shipped, more);
    cr_assert_str_eq(none, "none");
}

/* Every allowed value of every parameter of our own GEMM kernels, one at a time, gives the right product or is refused.
 */
Test(tuning, gemm_is_right_with_every_value, .init = init, .fini = scratch_remove) {
    static const struct {
        od_family family;
        const od_tuning_table *table;
    } kinds[] = {{OD_FAMILY_CPU, &od_gemm_cpu_table}, {OD_FAMILY_GPU, &od_gemm_gpu_table}};
    enum { M = 37, N = 41, K = 29 };
    for (size_t f = 0; f < OD_COUNT(kinds); f++) {
        od_device *device = od_test_device(kinds[f].family);
        od_cases *cs = od_cases_begin(device);
        for (int p = 0; p < kinds[f].table->count; p++)
            for (int v = 0; v < kinds[f].table->parameters[p].count; v++) {
                const od_tuning_parameter *parameter = &kinds[f].table->parameters[p];
                if (!od_case(cs, "tuned gemm %s %s=%d", od_family_name(kinds[f].family), parameter->name,
                             parameter->values[v]))
                    continue;
                od_tuning_row row = {.key = OD_TUNING_ANY, .shape = "*", .count = 1};
                (void)snprintf(row.variant, sizeof row.variant, "%s", kinds[f].table->variant);
                (void)snprintf(row.settings[0].name, sizeof row.settings[0].name, "%s", parameter->name);
                row.settings[0].value = parameter->values[v];
                float *a = od_case_normals(cs, M * K, 0), *b = od_case_normals(cs, K * N, 1);
                double *ref = od_case_alloc(cs, M * N * sizeof *ref);
                for (int i = 0; i < M * N; i++) {
                    ref[i] = 0;
                    for (int k = 0; k < K; k++)
                        ref[i] += (double)a[i / N * K + k] * b[k * N + i % N];
                }
                od_span as = od_case_input(cs, "a", a, M * K), bs = od_case_input(cs, "b", b, K * N);
                od_span c = od_case_output(cs, "c", M * N);
                OD_MUST(od_tuning_add(device, &row));
                const od_gemm_shape shape = {.m = M, .n = N, .k = K, .lda = K, .ldb = N, .ldc = N};
                if (od_case_ok(cs, od_gemm(device, &shape, c, as, bs, 1, 0)))
                    od_case_expect(cs, c, ref, 1e-5, 0);
                od_tuning_clear(device);
            }
        od_cases_end(cs);
    }
}

/* The rows in the program: each sets what its table allows. */
Test(tuning, shipped_rows_are_valid, .init = init, .fini = scratch_remove) {
    od_tuning_row *rows = NULL;
    size_t count = 0;
    OD_MUST(od_tuning_rows_parse(od_tuning_shipped, strlen(od_tuning_shipped), "shipped", &rows, &count));
    cr_assert_gt(count, 0);
    for (size_t i = 0; i < count; i++) {
        const od_tuning_table *named = od_tuning_table_named(rows[i].variant);
        const int defaults[OD_TUNING_PARAMETERS] = {0};
        char why[128];
        cr_assert_not_null(named, "row %zu: %s", i, rows[i].variant);
        cr_assert(od_tuning_row_valid(&rows[i], named, NULL, defaults, why, sizeof why), "row %zu: %s", i, why);
    }
    free(rows);
}
