/* The harness must be able to fail: each kind of error is planted once and must be caught, and what is right must pass.
 */
#include "harness.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

enum { N = 1025 };

static void make_pair(float *out, double *ref) {
    od_data_normal(out, N, 1, 2);
    for (int i = 0; i < N; i++)
        ref[i] = out[i];
}

/* ---- comparator ------------------------------------------------------------------------------------------------- */

Test(compare, accepts_rounding_noise) {
    float out[N], noise[N];
    double ref[N];
    make_pair(out, ref);
    od_data_uniform(noise, N, 3, 4);
    for (int i = 0; i < N; i++)
        out[i] += 1e-6f * noise[i];
    od_comparison c = od_compare(out, ref, N, 1e-6, 0);
    cr_assert(c.pass && c.within && !c.mistrusted, "%s", c.text);
    cr_assert_gt(c.relative, 1e-7);
    cr_assert_not(od_compare(out, ref, N, 1e-7, 0).pass, "a tolerance below the error must fail");
}

Test(compare, finds_one_wrong_value) {
    float out[N];
    double ref[N];
    make_pair(out, ref);
    out[700] += 0.01f;
    od_comparison c = od_compare(out, ref, N, 1e-5, 0);
    cr_assert_not(c.pass);
    cr_assert_eq(c.largest_at, 700);
    cr_assert_float_eq(c.largest, 0.01, 1e-6);
    cr_assert_not(od_compare(out, ref, N, 1e-2, 1e-3).pass, "the element's own limit must hold beside a wide norm");
    cr_assert(od_compare(out, ref, N, 1e-2, 2e-2).pass);
}

/* In a large tensor one wrong element hides in the norm; the default element limit still sees it. */
Test(compare, one_wrong_value_cannot_hide_in_a_large_norm) {
    size_t n = 4000000;
    float *out = malloc(n * sizeof *out);
    double *ref = malloc(n * sizeof *ref);
    cr_assert(out && ref);
    od_data_uniform(out, n, 5, 6);
    for (size_t i = 0; i < n; i++)
        ref[i] = out[i];
    out[n - 1] += 0.009f;
    od_comparison c = od_compare(out, ref, n, 1e-5, 0);
    cr_assert_leq(c.relative, 1e-5);
    cr_assert_not(c.pass, "%s", c.text);
    free(out);
    free(ref);
}

Test(compare, never_passes_nan_infinity_or_unset) {
    const uint32_t planted[] = {0x7fc00000u, 0xffc00001u, 0x7f800000u, 0xff800000u, OD_UNSET_BITS, OD_GUARD_BITS};
    for (size_t i = 0; i < OD_COUNT(planted); i++) {
        float out[N];
        double ref[N];
        make_pair(out, ref);
        memcpy(&out[N - 1], &planted[i], 4);
        od_comparison c = od_compare(out, ref, N, INFINITY, INFINITY);
        cr_assert_not(c.pass, "0x%08x passed", planted[i]);
        cr_assert(c.not_finite == 1 && c.not_finite_at == N - 1);
        cr_assert_eq(c.unset, planted[i] == OD_UNSET_BITS);
    }
}

Test(compare, mistrusts_what_reveals_nothing) {
    float out[N];
    double ref[N];
    for (int i = 0; i < N; i++)
        ref[i] = out[i] = 3;
    od_comparison c = od_compare(out, ref, N, 1e-5, 0);
    cr_assert(c.within && c.mistrusted && !c.pass, "constant: %s", c.text);

    memset(ref, 0, sizeof ref);
    memset(out, 0, sizeof out);
    c = od_compare(out, ref, N, 1e-5, 0);
    cr_assert(c.within && c.mistrusted && !c.pass, "zero: %s", c.text);
    out[7] = 1e-3f;
    cr_assert_not(od_compare(out, ref, N, 1e-5, 0).within, "a value beside an all-zero reference");
    cr_assert_not(od_compare(out, ref, N, 1e-5, 1e-4).within);
    cr_assert(od_compare(out, ref, N, 1e-5, 1e-2).within);

    cr_assert_not(od_compare(out, ref, 0, 1, 1).pass, "zero elements");
    cr_assert(od_compare((float[]){2}, (double[]){2}, 1, 1e-6, 0).pass, "a scalar may be constant");
    cr_assert_not(od_compare((float[]){0}, (double[]){0}, 1, 1e-6, 0).pass, "but not zero");
    cr_assert_not(od_compare((float[]){1, 2}, (double[]){1, NAN}, 2, 1, 1).pass, "a reference with NaN");
}

/* ---- data ------------------------------------------------------------------------------------------------------- */

Test(data, depends_on_seed_stream_and_index_alone) {
    float a[N], b[N];
    od_data_uniform(a, N, 1, 1);
    od_data_uniform(b, 100, 1, 1);
    cr_assert_arr_eq(a, b, 100 * sizeof *a);
    od_data_uniform(b, N, 2, 1);
    cr_assert_arr_neq(a, b, sizeof a);
    od_data_uniform(b, N, 1, 2);
    cr_assert_arr_neq(a, b, sizeof a);
}

Test(data, has_the_moments_it_claims) {
    enum { M = 100000 };
    static float u[M], z[M];
    static uint32_t k[M];
    double sum = 0, square = 0, cube = 0, lowest = 1, highest = -1;
    int counts[7] = {0};
    od_data_uniform(u, M, 9, 0);
    od_data_normal(z, M, 9, 0);
    od_data_index(k, M, 7, 9, 0);
    for (int i = 0; i < M; i++) {
        lowest = fmin(lowest, u[i]);
        highest = fmax(highest, u[i]);
        sum += z[i];
        square += (double)z[i] * z[i];
        cube += pow(z[i], 3);
        cr_assert_lt(k[i], 7);
        counts[k[i]]++;
    }
    cr_assert(lowest >= -1 && lowest < -0.999 && highest < 1 && highest > 0.999);
    cr_assert(fabs(sum / M) < 0.02 && fabs(square / M - 1) < 0.02 && fabs(cube / M) < 0.05);
    for (int i = 0; i < 7; i++)
        cr_assert(abs(counts[i] - M / 7) < 600);
}

/* ---- gradients -------------------------------------------------------------------------------------------------- */

static od_status sum_of_sines(void *context, const double *x, size_t elements, double *loss) {
    (void)context;
    *loss = 0;
    for (size_t i = 0; i < elements; i++)
        *loss += (i % 3 + 1.0) * sin(x[i]);
    return OD_OK;
}

static od_status broken_loss(void *context, const double *x, size_t elements, double *loss) {
    (void)context, (void)x, (void)elements;
    *loss = NAN;
    return OD_OK;
}

Test(gradient, tells_right_from_wrong) {
    float x[77], gradient[77];
    od_data_normal(x, 77, 1, 1);
    for (int i = 0; i < 77; i++)
        gradient[i] = (float)((i % 3 + 1.0) * cos((double)x[i]));
    od_comparison c = od_compare_gradient(sum_of_sines, NULL, x, gradient, 77, 1e-3, 4, 1e-5);
    cr_assert(c.pass, "%s", c.text);
    cr_assert_not(od_compare_gradient(broken_loss, NULL, x, gradient, 77, 1e-3, 4, 1e-5).pass, "a NaN loss");
    gradient[40] += 0.01f;
    c = od_compare_gradient(sum_of_sines, NULL, x, gradient, 77, 1e-3, 4, 1e-5);
    cr_assert_not(c.pass, "one wrong element: %s", c.text);
    gradient[40] = NAN;
    cr_assert_not(od_compare_gradient(sum_of_sines, NULL, x, gradient, 77, 1e-3, 4, INFINITY).pass);
    memset(gradient, 0, sizeof gradient);
    cr_assert_not(od_compare_gradient(sum_of_sines, NULL, x, gradient, 77, 1e-3, 4, INFINITY).pass, "a zero gradient");
}

/* ---- guarded tensors -------------------------------------------------------------------------------------------- */

static void plant(od_span span, long element, float value) {
    OD_MUST(od_buffer_write(span.buffer, (size_t)((long)span.offset + element) * 4, &value, 4));
}

Test(guarded, starts_unset_at_an_odd_offset_between_bands) {
    od_device *device = od_test_device(OD_FAMILY_REF);
    for (size_t i = 0; i < OD_COUNT(od_odd_sizes); i++) {
        size_t n = od_odd_sizes[i];
        char why[160];
        od_guarded g = od_guarded_create(device, n, true);
        uint32_t *words = malloc(n * 4);
        cr_assert(words && g.span.offset % 2 == 1 && g.span.offset >= OD_GUARD);
        od_guarded_read(&g, words);
        for (size_t k = 0; k < n; k++)
            cr_assert_eq(words[k], OD_UNSET_BITS);
        cr_assert(od_guarded_check(&g, why, sizeof why));
        free(words);
        od_guarded_release(&g);
    }
}

Test(guarded, sees_each_write_outside_and_none_inside) {
    od_device *device = od_test_device(OD_FAMILY_REF);
    const long outside[] = {-OD_GUARD, -2, -1, N, N + 1, N + OD_GUARD - 1}, inside[] = {0, 1, N / 2, N - 1};
    char why[160];
    for (size_t i = 0; i < OD_COUNT(outside); i++) {
        od_guarded g = od_guarded_create(device, N, i % 2);
        plant(g.span, outside[i], 1);
        cr_assert_not(od_guarded_check(&g, why, sizeof why), "a write at %ld went unseen", outside[i]);
        od_guarded_release(&g);
    }
    od_guarded g = od_guarded_create(device, N, true);
    for (size_t i = 0; i < OD_COUNT(inside); i++)
        plant(g.span, inside[i], 1);
    cr_assert(od_guarded_check(&g, why, sizeof why), "%s", why);
    od_guarded_seal(&g);
    plant(g.span, 5, 2);
    cr_assert_not(od_guarded_check(&g, why, sizeof why), "a changed input went unseen");
    od_guarded_release(&g);
}

/* ---- case lists ------------------------------------------------------------------------------------------------- */

/* A walk of one case in which `what` goes wrong; whether the list counted exactly one failure, for `because`. */
typedef enum wrong { NOTHING, VALUE, UNWRITTEN, BEFORE, PAST, INPUT, CONSTANT, STATUS, NO_VERDICT, WORDS } wrong;

static void walk(wrong what, const char *because) {
    od_cases *cases = od_cases_begin(od_test_device(OD_FAMILY_REF));
    cr_assert(od_case(cases, "planted error %d (failures printed here are expected)", what));
    float *x = od_case_normals(cases, N, 0);
    double *ref = od_case_alloc(cases, N * sizeof *ref);
    od_span xs = od_case_input(cases, "x", x, N), ys = od_case_output(cases, "y", N);
    for (int i = 0; i < N; i++)
        ref[i] = what == CONSTANT ? (x[i] = 2) : x[i];
    OD_MUST(od_span_write(ys, x, what == UNWRITTEN ? N - 1 : N));
    if (what == VALUE)
        plant(ys, 3, 9);
    if (what == BEFORE)
        plant(ys, -1, 0);
    if (what == PAST)
        plant(ys, N, 0);
    if (what == INPUT)
        plant(xs, N - 1, 0);
    if (what == STATUS)
        od_case_ok(cases, od_fail(OD_ERR_DEVICE, "planted"));
    if (what == WORDS)
        od_case_expect_words(cases, ys, od_case_uniforms(cases, N, 1));
    else if (what != NO_VERDICT)
        od_case_expect(cases, ys, ref, 1e-6, 0);
    if (od_case(cases, "the next, without fault"))
        od_case_check(cases, true, "never printed");
    cr_assert_eq(od_cases_run(cases), 2);
    cr_assert_eq(od_cases_failed(cases), what == NOTHING ? 0 : 1, "planted error %d", what);
    cr_assert(strstr(od_cases_last_failure(cases), because), "\"%s\" does not say \"%s\"", od_cases_last_failure(cases),
              because);
    od_cases_discard(cases);
}

Test(cases, catch_each_planted_error) {
    unsetenv("OFFDIAG_CASE");
    walk(NOTHING, "");
    walk(VALUE, "at 3 of 1025");
    walk(UNWRITTEN, "1 never written");
    walk(BEFORE, "y: written 1 elements before");
    walk(PAST, "y: written 0 elements past");
    walk(INPUT, "x: an input of 1025 elements was changed");
    walk(CONSTANT, "mistrusted: the reference is constant");
    walk(STATUS, "planted");
    walk(NO_VERDICT, "compared nothing");
    walk(WORDS, "word 0 of 1025");
}

Test(cases, a_constant_passes_where_the_case_says_so) {
    od_cases *cases = od_cases_begin(od_test_device(OD_FAMILY_REF));
    unsetenv("OFFDIAG_CASE");
    cr_assert(od_case(cases, "zero by nature"));
    od_span ys = od_case_output(cases, "y", N);
    OD_MUST(od_span_zero(ys, N));
    od_case_expect_constant(cases, ys, od_case_alloc(cases, N * sizeof(double)), 1e-6, 0);
    od_cases_end(cases);
}

Test(cases, follow_the_filter) {
    const char *names[] = {"conv n=3", "conv n=31", "norm n=3"};
    const struct {
        const char *filter;
        size_t run;
    } rows[] = {{"", 3}, {"conv", 2}, {"conv n=3", 2}, {"=conv n=3", 1}, {"n=31", 1}, {"gemm", 0}, {"=conv", 0}};
    for (size_t r = 0; r < OD_COUNT(rows); r++) {
        od_cases *cases = od_cases_begin(NULL);
        setenv("OFFDIAG_CASE", rows[r].filter, 1);
        for (size_t i = 0; i < OD_COUNT(names); i++)
            if (od_case(cases, "%s", names[i]))
                od_case_check(cases, true, "never printed");
        cr_assert_eq(od_cases_run(cases), rows[r].run, "filter \"%s\"", rows[r].filter);
        od_cases_discard(cases);
    }
}

/* Criterion has no "expected to fail", so a second run of this executable meets the fault that OFFDIAG_TEST_PLANT
 * names; an ordinary run walks a sound list. */
Test(planted, fault) {
    const char *plant = getenv("OFFDIAG_TEST_PLANT");
    od_cases *cases = od_cases_begin(NULL);
    if (plant && strcmp(plant, "must") == 0)
        OD_MUST(od_fail(OD_ERR_DEVICE, "planted"));
    for (int i = 0; i < 3 && !(plant && strcmp(plant, "empty") == 0); i++) {
        if (!od_case(cases, "case number=%d", i))
            continue;
        if (plant && strcmp(plant, "crash") == 0 && i == 1)
            raise(SIGSEGV);
        od_case_check(cases, !plant || i != 1, "planted");
    }
    od_cases_end(cases);
    cases = od_cases_begin(NULL); /* a second list, which a filter may leave out whole */
    if (od_case(cases, "another list"))
        od_case_check(cases, true, "never printed");
    od_cases_end(cases);
}

/* Run `command`, collect what it prints, return its exit status. */
static int run_command(const char *command, char *output, size_t size) {
    unsetenv("BXFI_MAP"); /* Criterion's mark of a test process: the child is a run of its own */
    FILE *pipe = popen(command, "r");
    cr_assert(pipe);
    size_t length = fread(output, 1, size - 1, pipe);
    output[length] = 0;
    return pclose(pipe);
}

static int run_planted(const char *plant, char *output, size_t size) {
    char path[512] = "", command[1024];
    cr_assert_gt(readlink("/proc/self/exe", path, sizeof path - 1), 0);
    snprintf(command, sizeof command, "unset OFFDIAG_CASE; %s '%s' --filter 'planted/fault' 2>&1", plant, path);
    return run_command(command, output, size);
}

Test(verdict, a_sound_list_passes) {
    char output[8192];
    cr_assert_eq(run_planted("", output, sizeof output), 0, "%s", output);
}

Test(verdict, faults_fail_the_run) {
    char output[8192];
    cr_assert_neq(run_planted("OFFDIAG_TEST_PLANT=case", output, sizeof output), 0);
    cr_assert(strstr(output, "1 of 3 cases failed"), "%s", output);
    cr_assert_neq(run_planted("OFFDIAG_TEST_PLANT=empty", output, sizeof output), 0);
    cr_assert(strstr(output, "no case ran"), "%s", output);
    cr_assert_neq(run_planted("OFFDIAG_TEST_PLANT=must", output, sizeof output), 0);
    cr_assert(strstr(output, "planted"), "%s", output);
    cr_assert_neq(run_planted("OFFDIAG_TEST_PLANT=crash", output, sizeof output), 0);
    cr_assert(strstr(output, "CRASH in case: case number=1"), "%s", output);
    run_planted("OFFDIAG_CASE=nothing", output, sizeof output);
    cr_assert(strstr(output, "no case ran"), "%s", output);
    cr_assert_eq(run_planted("OFFDIAG_CASE='=case number=2'", output, sizeof output), 0, "%s", output);
}

/* The printed command, typed as it stands, runs that case and no other. */
Test(verdict, the_printed_command_reruns_the_case) {
    char output[8192], again[8192], command[4096];
    cr_assert_neq(run_planted("OFFDIAG_TEST_PLANT=case", output, sizeof output), 0);
    char *rerun = strstr(output, "rerun: ");
    cr_assert(rerun, "%s", output);
    rerun[strcspn(rerun, "\n")] = 0;
    snprintf(command, sizeof command, "OFFDIAG_TEST_PLANT=case %s 2>&1", rerun + strlen("rerun: "));
    cr_assert_neq(run_command(command, again, sizeof again), 0);
    cr_assert(strstr(again, "1 of 1 cases failed"), "%s", again);
}
