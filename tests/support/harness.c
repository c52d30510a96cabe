/* Devices, guarded tensors and case lists of the test harness. */
#include "harness.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <criterion/criterion.h>

void od_must(od_status status, const char *what, const char *file, int line) {
    if (status != OD_OK)
        cr_assert_fail("%s:%d: %s: %s: %s", file, line, what, od_status_name(status), od_error_message());
}

static void *must_alloc(size_t bytes) {
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory)
        cr_assert_fail("no host memory for %zu bytes", bytes);
    return memory;
}

/* ---- device ----------------------------------------------------------------------------------------------------- */

static const char *executable_path(void) {
    static char path[PATH_MAX];
    if (!path[0]) {
        ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
        path[length > 0 ? length : 0] = 0;
    }
    return path;
}

/* Tests share one kernel cache (ours and PoCL's), beside their executables, so that only the first run compiles; a
 * cache that the user points to is left in charge. */
void od_test_use_cache(void) {
    if (getenv("XDG_CACHE_HOME"))
        return;
    char path[PATH_MAX];
    const char *named = getenv("OFFDIAG_TEST_CACHE"), *slash = strrchr(executable_path(), '/');
    if (named && named[0])
        snprintf(path, sizeof path, "%s", named);
    else if (slash)
        snprintf(path, sizeof path, "%.*s/test-cache", (int)(slash - executable_path()), executable_path());
    else
        return;
    if (mkdir(path, 0700) == 0 || errno == EEXIST)
        setenv("XDG_CACHE_HOME", path, 1);
}

bool od_test_is_whole(void) {
    const char *whole = getenv("OFFDIAG_TEST_WHOLE");
    return whole && *whole;
}

void od_test_needs_whole(void) {
    if (!od_test_is_whole())
        cr_skip_test("in the long suite");
}

static const char *device_spec(void) {
    const char *spec = getenv("OFFDIAG_TEST_DEVICE");
    return spec && spec[0] ? spec : "auto";
}

od_device *od_test_device(od_family family) {
    static od_device *devices[OD_FAMILY_GPU + 1];
    static pid_t owner;
    if (owner != getpid()) { /* a device never outlives a fork */
        memset(devices, 0, sizeof devices);
        owner = getpid();
        od_test_use_cache();
    }
    if (!devices[family]) {
        od_device_options options = {.family = family};
        od_status status = od_device_open(device_spec(), &options, &devices[family]);
        if (status != OD_OK)
            cr_assert_fail("can't open device \"%s\" (OFFDIAG_TEST_DEVICE): %s", device_spec(), od_error_message());
    }
    return devices[family];
}

bool od_test_affords(double multiply_adds) {
    const char *limit = getenv("OFFDIAG_TEST_WORK");
    return !limit || !limit[0] || multiply_adds <= strtod(limit, NULL);
}

/* ---- guarded tensors -------------------------------------------------------------------------------------------- */

static uint64_t checksum(const void *words, size_t elements) {
    const uint32_t *word = words;
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a over 32-bit words */
    for (size_t i = 0; i < elements; i++)
        hash = (hash ^ word[i]) * 0x100000001b3u;
    return hash;
}

/* Buffers are only written from their start, as a whole: Oclgrind misplaces what it knows about a write or fill at an
 * offset, and would call the tensor uninitialised. */
od_guarded od_guarded_create(od_device *device, size_t elements, bool odd_offset) {
    od_guarded g = {.elements = elements, .after = OD_GUARD, .span.offset = odd_offset ? OD_GUARD + 3 : OD_GUARD};
    size_t total = g.span.offset + elements + g.after;
    uint32_t *all = must_alloc(total * 4);
    for (size_t i = 0; i < total; i++)
        all[i] = i >= g.span.offset && i < g.span.offset + elements ? OD_UNSET_BITS : OD_GUARD_BITS;
    OD_MUST(od_buffer_create(device, total * 4, &g.span.buffer));
    OD_MUST(od_buffer_write(g.span.buffer, 0, all, total * 4));
    free(all);
    return g;
}

void od_guarded_write(od_guarded *g, const void *words) {
    size_t total = g->span.offset + g->elements + g->after;
    uint32_t *all = must_alloc(total * 4);
    OD_MUST(od_buffer_read(g->span.buffer, 0, all, total * 4));
    memcpy(all + g->span.offset, words, g->elements * 4);
    OD_MUST(od_buffer_write(g->span.buffer, 0, all, total * 4));
    free(all);
}

void od_guarded_read(const od_guarded *g, void *words) {
    OD_MUST(od_buffer_read(g->span.buffer, g->span.offset * 4, words, g->elements * 4));
}

void od_guarded_seal(od_guarded *g) {
    void *words = must_alloc(g->elements * 4);
    od_guarded_read(g, words);
    g->checksum = checksum(words, g->elements);
    g->sealed = true;
    free(words);
}

bool od_guarded_check(const od_guarded *g, char *why, size_t why_size) {
    size_t before = g->span.offset, total = before + g->elements + g->after;
    uint32_t *words = must_alloc(total * 4);
    OD_MUST(od_buffer_read(g->span.buffer, 0, words, total * 4));
    bool good = true;
    for (size_t i = 0; i < total && good; i++) {
        bool inside = i >= before && i < before + g->elements;
        if (inside || words[i] == OD_GUARD_BITS)
            continue;
        good = false;
        if (i < before)
            snprintf(why, why_size, "written %zu elements before its begin (0x%08x)", before - i, words[i]);
        else
            snprintf(why, why_size, "written %zu elements past its %zu (0x%08x)", i - before - g->elements, g->elements,
                     words[i]);
    }
    if (good && g->sealed && checksum(words + before, g->elements) != g->checksum) {
        good = false;
        snprintf(why, why_size, "an input of %zu elements was changed", g->elements);
    }
    free(words);
    return good;
}

void od_guarded_release(od_guarded *g) {
    od_buffer_release(g->span.buffer);
    *g = (od_guarded){0};
}

/* ---- case lists ------------------------------------------------------------------------------------------------- */

enum { MAX_TENSORS = 64, MAX_BLOCKS = 256 };

struct od_cases {
    od_device *device;
    size_t run, failed, filtered;
    bool open, bad;  /* a case is under way; it has failed */
    bool aligned;    /* its tensors start at multiples of 64 elements */
    size_t verdicts; /* comparisons and checks in the open case */
    char text[512], failure[1024];
    struct {
        od_guarded guarded;
        const char *name;
    } tensors[MAX_TENSORS];
    size_t tensor_count;
    void *blocks[MAX_BLOCKS];
    size_t block_count;
};

/* A crash inside a kernel would otherwise not say which case it was. */
static char crash_text[700];

static void on_crash(int signal_number) {
    ssize_t ignored = write(STDERR_FILENO, crash_text, strlen(crash_text));
    (void)ignored;
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void watch_for_crashes(void) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    for (size_t i = 0; i < OD_COUNT(signals); i++)
        signal(signals[i], on_crash);
}

od_cases *od_cases_begin(od_device *device) {
    od_cases *cases = must_alloc(sizeof *cases);
    cases->device = device;
    watch_for_crashes();
    return cases;
}

/* The command that reruns the open case alone, on the same device. */
static void print_rerun(const od_cases *cases) {
    const struct criterion_test *test = criterion_current_test;
    fprintf(stderr, "      rerun: OFFDIAG_TEST_DEVICE='%s' OFFDIAG_CASE='=%s' %s --filter '%s/%s'\n", device_spec(),
            cases->text, executable_path(), test ? test->category : "*", test ? test->name : "*");
}

static void fail_case(od_cases *cases, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void fail_case(od_cases *cases, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(cases->failure, sizeof cases->failure, format, args);
    va_end(args);
    if (!cases->bad)
        fprintf(stderr, "FAIL  %s\n", cases->text);
    fprintf(stderr, "      %s\n", cases->failure);
    if (!cases->bad) {
        print_rerun(cases);
        cases->failed++;
    }
    cases->bad = true;
}

static void end_case(od_cases *cases) {
    if (!cases->bad && cases->verdicts == 0)
        fail_case(cases, "the case compared nothing");
    for (size_t i = 0; i < cases->tensor_count; i++) {
        char why[160];
        if (!od_guarded_check(&cases->tensors[i].guarded, why, sizeof why))
            fail_case(cases, "%s: %s", cases->tensors[i].name, why);
        od_guarded_release(&cases->tensors[i].guarded);
    }
    for (size_t i = 0; i < cases->block_count; i++)
        free(cases->blocks[i]);
    cases->tensor_count = cases->block_count = 0;
    cases->open = false;
    crash_text[0] = 0;
}

static bool selected(const char *text) {
    const char *filter = getenv("OFFDIAG_CASE");
    if (!filter || !filter[0])
        return true;
    return filter[0] == '=' ? strcmp(text, filter + 1) == 0 : strstr(text, filter) != NULL;
}

bool od_case(od_cases *cases, const char *format, ...) {
    if (cases->open)
        end_case(cases);
    va_list args;
    va_start(args, format);
    vsnprintf(cases->text, sizeof cases->text, format, args);
    va_end(args);
    if (!selected(cases->text)) {
        cases->filtered++;
        return false;
    }
    cases->open = true;
    cases->bad = cases->aligned = false;
    cases->verdicts = 0;
    cases->run++;
    snprintf(crash_text, sizeof crash_text, "CRASH in case: %s\n", cases->text);
    if (getenv("OFFDIAG_TEST_VERBOSE"))
        fprintf(stderr, "case  %s\n", cases->text);
    return true;
}

void od_case_aligned(od_cases *cases, bool aligned) {
    cases->aligned = aligned;
}

void od_cases_discard(od_cases *cases) {
    if (cases->open)
        end_case(cases);
    free(cases);
}

/* A test may walk several lists, and a filter may mean a case of one of them: whether it met any is known at the exit
 * of the test's process, too late for Criterion's verdict, so it is said in words. */
static size_t run_by_process;

static void tell_idle_exit(void) {
    if (run_by_process == 0)
        fprintf(stderr, "no case ran: OFFDIAG_CASE='%s' names none of this test\n", getenv("OFFDIAG_CASE"));
}

void od_cases_end(od_cases *cases) {
    if (cases->open)
        end_case(cases);
    size_t run = cases->run, failed = cases->failed, filtered = cases->filtered;
    free(cases);
    if (run == 0 && filtered == 0)
        cr_assert_fail("no case ran: a list without cases proves nothing");
    if (run == 0 && run_by_process == 0)
        atexit(tell_idle_exit);
    run_by_process += run;
    if (failed)
        cr_assert_fail("%zu of %zu cases failed", failed, run);
}

/* ---- memory and tensors of a case ------------------------------------------------------------------------------- */

void *od_case_alloc(od_cases *cases, size_t bytes) {
    if (!cases->open || cases->block_count == MAX_BLOCKS)
        cr_assert_fail("od_case_alloc outside a case, or more than %d blocks", MAX_BLOCKS);
    return cases->blocks[cases->block_count++] = must_alloc(bytes);
}

static uint32_t case_seed(const od_cases *cases) {
    uint32_t hash = 0x811c9dc5u; /* FNV-1a: data does not depend on which cases ran before */
    for (const char *p = cases->text; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 0x01000193u;
    return hash;
}

float *od_case_uniforms(od_cases *cases, size_t elements, uint32_t stream) {
    float *out = od_case_alloc(cases, elements * sizeof *out);
    od_data_uniform(out, elements, case_seed(cases), stream);
    return out;
}

float *od_case_normals(od_cases *cases, size_t elements, uint32_t stream) {
    float *out = od_case_alloc(cases, elements * sizeof *out);
    od_data_normal(out, elements, case_seed(cases), stream);
    return out;
}

uint32_t *od_case_indices(od_cases *cases, size_t elements, uint32_t below, uint32_t stream) {
    uint32_t *out = od_case_alloc(cases, elements * sizeof *out);
    od_data_index(out, elements, below, case_seed(cases), stream);
    return out;
}

static od_guarded *add_tensor(od_cases *cases, const char *name, size_t elements) {
    if (!cases->open || !cases->device || cases->tensor_count == MAX_TENSORS)
        cr_assert_fail("tensor %s outside a case, without a device, or beyond %d tensors", name, MAX_TENSORS);
    od_guarded *g = &cases->tensors[cases->tensor_count].guarded;
    *g = od_guarded_create(cases->device, elements, !cases->aligned);
    cases->tensors[cases->tensor_count++].name = name;
    return g;
}

od_span od_case_output(od_cases *cases, const char *name, size_t elements) {
    return add_tensor(cases, name, elements)->span;
}

od_span od_case_inout(od_cases *cases, const char *name, const void *words, size_t elements) {
    od_guarded *g = add_tensor(cases, name, elements);
    od_guarded_write(g, words);
    return g->span;
}

od_span od_case_input(od_cases *cases, const char *name, const void *words, size_t elements) {
    od_guarded *g = add_tensor(cases, name, elements);
    od_guarded_write(g, words);
    g->checksum = checksum(words, elements);
    g->sealed = true;
    return g->span;
}

/* ---- verdicts --------------------------------------------------------------------------------------------------- */

bool od_case_ok(od_cases *cases, od_status status) {
    if (status != OD_OK)
        fail_case(cases, "%s: %s", od_status_name(status), od_error_message());
    return status == OD_OK;
}

bool od_case_check(od_cases *cases, bool condition, const char *format, ...) {
    cases->verdicts++;
    if (condition)
        return true;
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fail_case(cases, "%s", text);
    return false;
}

bool od_case_passes(od_cases *cases, const char *name, const od_comparison *comparison) {
    cases->verdicts++;
    if (!comparison->pass)
        fail_case(cases, "%s: %s", name, comparison->text);
    return comparison->pass;
}

bool od_case_expect_host(od_cases *cases, const char *name, const float *out, const double *ref, size_t elements,
                         double rel_tol, double abs_tol) {
    od_comparison c = od_compare(out, ref, elements, rel_tol, abs_tol);
    return od_case_passes(cases, name, &c);
}

/* The case's tensor that `span` names, read back; its name and size through the pointers. */
static void *read_tensor(od_cases *cases, od_span span, const char **name, size_t *elements) {
    for (size_t i = 0; i < cases->tensor_count; i++) {
        const od_guarded *g = &cases->tensors[i].guarded;
        if (g->span.buffer != span.buffer || g->span.offset != span.offset)
            continue;
        void *words = od_case_alloc(cases, g->elements * 4);
        od_guarded_read(g, words);
        *name = cases->tensors[i].name;
        *elements = g->elements;
        return words;
    }
    cr_assert_fail("no tensor of this case is at that span");
    return NULL;
}

bool od_case_expect(od_cases *cases, od_span tensor, const double *ref, double rel_tol, double abs_tol) {
    const char *name = NULL;
    size_t elements = 0;
    const float *out = read_tensor(cases, tensor, &name, &elements);
    return od_case_expect_host(cases, name, out, ref, elements, rel_tol, abs_tol);
}

bool od_case_expect_constant(od_cases *cases, od_span tensor, const double *ref, double rel_tol, double abs_tol) {
    const char *name = NULL;
    size_t elements = 0;
    const float *out = read_tensor(cases, tensor, &name, &elements);
    od_comparison c = od_compare(out, ref, elements, rel_tol, abs_tol);
    c.pass = c.within;
    return od_case_passes(cases, name, &c);
}

bool od_case_expect_words(od_cases *cases, od_span tensor, const void *words) {
    const char *name = NULL;
    size_t elements = 0;
    const uint32_t *out = read_tensor(cases, tensor, &name, &elements), *ref = words;
    for (size_t i = 0; i < elements; i++)
        if (out[i] != ref[i])
            return od_case_check(cases, false, "%s: word %zu of %zu is %#x, not %#x", name, i, elements, out[i],
                                 ref[i]);
    return od_case_check(cases, elements > 0, "%s: nothing to compare: zero elements", name);
}

size_t od_cases_run(const od_cases *cases) {
    return cases->run;
}

size_t od_cases_failed(const od_cases *cases) {
    return cases->failed;
}

const char *od_cases_last_failure(const od_cases *cases) {
    return cases->failure;
}
