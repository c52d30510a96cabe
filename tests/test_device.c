/* The device layer on a real device (OFFDIAG_TEST_DEVICE, auto by default): buffers, launches, profile, binary cache.
 * Criterion forks for each test: no OpenCL call before that. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"
#include "offdiag/device.h"
#include "scratch.h"

#define CONTAINS(text, part) cr_assert(strstr((text), (part)) != NULL, "expected '%s' in: %s", (part), (text))
#define MUST(call)           cr_assert_eq((call), OD_OK, "%s: %s", #call, od_error_message())

enum { N = 1000 };

static od_device *open_device(od_device_options options) {
    od_device *device;
    MUST(od_device_open(getenv("OFFDIAG_TEST_DEVICE"), &options, &device));
    return device;
}

static od_kernel *get(od_device *device, const char *name) {
    od_kernel *kernel;
    MUST(od_kernel_get(device, "device_check", "", name, &kernel));
    return kernel;
}

static bool is_simulator(const od_device *device) {
    return strcmp(od_device_get_info(device)->platform, "Oclgrind") == 0;
}

/* y = 2 x + i on `device`; fails the test where it is not that. */
static void check_axpi(od_device *device) {
    od_span x, y;
    float host[N];
    for (int i = 0; i < N; i++)
        host[i] = (float)(i % 17);
    MUST(od_span_create(device, N + 3, &x));
    MUST(od_span_create(device, N + 5, &y));
    MUST(od_span_write(od_span_at(x, 3), host, N));
    MUST(OD_LAUNCH(get(device, "check_axpi"), OD_RANGE1(N, 64), OD_SPAN(od_span_at(y, 5)), OD_SPAN(od_span_at(x, 3)),
                   OD_F32(2), OD_U32(N)));
    MUST(od_span_read(od_span_at(y, 5), host, N));
    for (int i = 0; i < N; i++)
        cr_assert_eq(host[i], (float)(2 * (i % 17) + i), "element %d: %g", i, host[i]);
    od_buffer_release(x.buffer);
    od_buffer_release(y.buffer);
}

TestSuite(device, .init = scratch_init, .fini = scratch_remove);

/* ---- devices ----------------------------------------------------------------------------------------------------- */

Test(device, list_is_complete) {
    od_device_info *infos;
    size_t count;
    MUST(od_device_list(&infos, &count));
    cr_assert_gt(count, 0);
    for (size_t i = 0; i < count; i++) {
        cr_assert(infos[i].name[0] && infos[i].platform[0] && infos[i].driver[0] && infos[i].version[0]);
        cr_assert(!infos[i].usable || (infos[i].compute_units && infos[i].memory_bytes && infos[i].max_alloc_bytes &&
                                       infos[i].local_bytes && infos[i].max_work_group && infos[i].vector_width));
    }
    free(infos);
}

Test(device, families) {
    od_family family;
    cr_assert(od_family_parse("gpu", &family) && family == OD_FAMILY_GPU);
    cr_assert_not(od_family_parse("tpu", &family));
    od_device *device = open_device((od_device_options){.family = OD_FAMILY_REF});
    cr_assert_eq(od_device_family(device), OD_FAMILY_REF);
    od_device_close(device);
    device = open_device((od_device_options){0});
    bool cpu = od_device_get_info(device)->type == OD_DEVICE_CPU;
    cr_assert_eq(od_device_family(device), cpu ? OD_FAMILY_CPU : OD_FAMILY_GPU);
    od_device_close(device);
    od_device_close(NULL);
}

Test(device, no_such_device) {
    od_device *device = (od_device *)1;
    cr_assert_eq(od_device_open("voodoo", NULL, &device), OD_ERR_NO_DEVICE);
    cr_assert_null(device);
    CONTAINS(od_error_message(), "voodoo");
}

/* ---- buffers ----------------------------------------------------------------------------------------------------- */

Test(device, transfers) {
    od_device *device = open_device((od_device_options){0});
    od_buffer *a, *b;
    uint32_t words[64], back[64];
    for (uint32_t i = 0; i < 64; i++)
        words[i] = i * 2654435761u;
    MUST(od_buffer_create(device, sizeof words, &a));
    MUST(od_buffer_create(device, sizeof words, &b));
    cr_assert_eq(od_buffer_size(a), sizeof words);
    cr_assert_eq(od_buffer_device(a), device);
    MUST(od_buffer_write(a, 0, words, sizeof words));
    MUST(od_buffer_fill(b, 0, sizeof words, 0xabcd1234));
    MUST(od_buffer_copy(b, 16, a, 32, 64));
    MUST(od_buffer_copy(a, 0, a, 128, 128)); /* within one buffer, no overlap */
    MUST(od_buffer_read(b, 0, back, sizeof back));
    for (int i = 0; i < 64; i++)
        cr_assert_eq(back[i], i >= 4 && i < 20 ? words[i + 4] : 0xabcd1234, "word %d", i);
    MUST(od_buffer_read(a, 0, back, 128));
    cr_assert_eq(memcmp(back, words + 32, 128), 0);
    od_buffer_release(a);
    od_buffer_release(b);
    od_buffer_release(NULL);
    od_device_close(device);
}

Test(device, ranges_are_checked) {
    od_device *device = open_device((od_device_options){0});
    od_buffer *a;
    char data[200] = {0};
    MUST(od_buffer_create(device, 100, &a)); /* capacity is more: it must not count */
    cr_assert_eq(od_buffer_write(a, 0, data, 101), OD_ERR_ARGUMENT);
    CONTAINS(od_error_message(), "not in a buffer of 100");
    cr_assert_eq(od_buffer_read(a, 50, data, 51), OD_ERR_ARGUMENT);
    cr_assert_eq(od_buffer_read(a, SIZE_MAX - 3, data, 8), OD_ERR_ARGUMENT); /* the sum wraps */
    cr_assert_eq(od_buffer_fill(a, 0, 104, 0), OD_ERR_ARGUMENT);
    cr_assert_eq(od_buffer_fill(a, 2, 4, 0), OD_ERR_ARGUMENT);
    CONTAINS(od_error_message(), "multiples of 4");
    cr_assert_eq(od_buffer_copy(a, 0, a, 3, 10), OD_ERR_ARGUMENT);
    CONTAINS(od_error_message(), "overlap");
    cr_assert_eq(od_buffer_copy(a, 0, a, 90, 11), OD_ERR_ARGUMENT);
    cr_assert_eq(od_span_zero(OD_NO_SPAN, 1), OD_ERR_ARGUMENT);
    cr_assert_eq(od_span_zero((od_span){a, SIZE_MAX / 2}, 1), OD_ERR_ARGUMENT);
    cr_assert_eq(od_span_zero(od_span_of(a), 26), OD_ERR_ARGUMENT);
    MUST(od_span_zero(od_span_of(a), 25));
    MUST(od_buffer_write(a, 100, data, 0));
    od_buffer_release(a);
    MUST(od_buffer_create(device, 0, &a));
    MUST(od_buffer_fill(a, 0, 0, 1));
    od_buffer_release(a);
    od_device_close(device);
}

Test(device, pool_reuses_and_accounts) {
    od_device *device = open_device((od_device_options){.memory_bytes = 64 << 20});
    od_buffer *a, *b, *c;
    cr_assert_eq(od_device_memory(device).budget, 64 << 20);
    MUST(od_buffer_create(device, 10 << 20, &a));
    cr_assert_geq(od_device_memory(device).live, 10 << 20);
    cr_assert_leq(od_device_memory(device).live, 12 << 20);
    od_buffer_release(a);
    cr_assert_eq(od_device_memory(device).live, 0);
    MUST(od_buffer_create(device, (10 << 20) - 100, &b));
    cr_assert_eq(a, b, "a freed buffer of the same class is taken again");
    cr_assert_eq(od_buffer_size(b), (10 << 20) - 100);
    MUST(od_buffer_create(device, 1000, &c));
    cr_assert_geq(od_device_memory(device).peak, (10 << 20) + 1000);
    od_buffer_release(b);
    od_buffer_release(c);
    uint64_t peak = od_device_memory(device).peak;
    MUST(od_buffer_create(device, 64 << 20, &a)); /* only once the idle ones are given back */
    cr_assert_gt(od_device_memory(device).peak, peak);
    od_buffer_release(a);
    od_device_close(device);
}

Test(device, budget_is_kept) {
    od_device *device = open_device((od_device_options){.memory_bytes = 8 << 20});
    od_buffer *a, *b = (od_buffer *)1;
    MUST(od_buffer_create(device, 5 << 20, &a));
    cr_assert_eq(od_buffer_create(device, 4 << 20, &b), OD_ERR_DEVICE_MEMORY);
    cr_assert_null(b);
    CONTAINS(od_error_message(), "4194304 bytes (4.0 MiB): over the budget; in use 5.0 MiB, budget 8.0 MiB");
    CONTAINS(od_error_message(), "largest allocation");
    MUST(od_buffer_create(device, 3 << 20, &b)); /* exactly what is left */
    od_buffer_release(a);
    od_buffer_release(b);
    cr_assert_eq(od_buffer_create(device, SIZE_MAX, &b), OD_ERR_DEVICE_MEMORY);
    CONTAINS(od_error_message(), "larger than one allocation may be");
    od_span s;
    cr_assert_eq(od_span_create(device, SIZE_MAX / 2, &s), OD_ERR_DEVICE_MEMORY);
    cr_assert_null(s.buffer);
    od_device_close(device);
}

/* A released buffer's content must reach the commands queued before its reuse. */
Test(device, release_while_queued) {
    od_device *device = open_device((od_device_options){0});
    od_span y;
    MUST(od_span_create(device, N, &y));
    for (int round = 0; round < 50; round++) {
        od_span x;
        float host[N];
        MUST(od_span_create(device, N, &x));
        MUST(od_buffer_fill(x.buffer, 0, N * sizeof(float), 0x3f800000u + (uint32_t)round)); /* 1 and a little */
        MUST(OD_LAUNCH(get(device, "check_axpi"), OD_RANGE1(N, 64), OD_SPAN(y), OD_SPAN(x), OD_F32(1), OD_U32(1)));
        od_buffer_release(x.buffer);
        MUST(od_span_create(device, N, &x));
        MUST(od_span_zero(x, N));
        od_buffer_release(x.buffer);
        MUST(od_span_read(y, host, 1));
        uint32_t bits = 0x3f800000u + (uint32_t)round;
        cr_assert_eq(memcmp(&bits, host, 4), 0);
    }
    od_buffer_release(y.buffer);
    od_device_close(device);
}

/* ---- kernels and launches ---------------------------------------------------------------------------------------- */

Test(device, launch_with_offsets) {
    od_device *device = open_device((od_device_options){0});
    check_axpi(device);
    cr_assert_eq(get(device, "check_axpi"), get(device, "check_axpi"));
    od_device_close(device);
}

Test(device, local_memory_and_null_span) {
    od_device *device = open_device((od_device_options){0});
    od_span x, y;
    float host[64];
    uint32_t word;
    for (int i = 0; i < 64; i++)
        host[i] = (float)i;
    MUST(od_span_create(device, 64, &x));
    MUST(od_span_create(device, 64, &y));
    MUST(od_span_write(x, host, 64));
    MUST(OD_LAUNCH(get(device, "check_reverse"), OD_RANGE1(64, 16), OD_SPAN(y), OD_SPAN(x), OD_LOCAL(64)));
    MUST(od_span_read(y, host, 64));
    for (int i = 0; i < 64; i++)
        cr_assert_eq((int)host[i], i / 16 * 16 + 15 - i % 16);
    MUST(OD_LAUNCH(get(device, "check_null"), OD_RANGE1(1, 0), OD_SPAN(y), OD_SPAN(OD_NO_SPAN)));
    MUST(od_buffer_read(y.buffer, 0, &word, 4));
    cr_assert_eq(word, 1);
    od_buffer_release(x.buffer);
    od_buffer_release(y.buffer);
    od_device_close(device);
}

Test(device, zero_size_launch_does_nothing) {
    od_device *device = open_device((od_device_options){0});
    od_span y;
    float before = 42, after = 0;
    MUST(od_span_create(device, 1, &y));
    MUST(od_span_write(y, &before, 1));
    od_kernel *kernel = get(device, "check_axpi");
    MUST(OD_LAUNCH(kernel, OD_RANGE1(0, 64), OD_SPAN(y), OD_SPAN(y), OD_F32(2), OD_U32(1)));
    MUST(OD_LAUNCH(kernel, OD_RANGE3(4, 4, 0, 1, 1, 1), OD_SPAN(y), OD_SPAN(y), OD_F32(2), OD_U32(1)));
    MUST(od_span_read(y, &after, 1));
    cr_assert_eq(after, before);
    od_buffer_release(y.buffer);
    od_device_close(device);
}

Test(device, wrong_arguments_are_named) {
    od_device *device = open_device((od_device_options){0});
    od_span y;
    MUST(od_span_create(device, 64, &y));
    od_kernel *axpi = get(device, "check_axpi"), *reverse = get(device, "check_reverse");
    cr_assert_gt(od_kernel_max_work_group(axpi), 0);
    cr_assert_eq(OD_LAUNCH(axpi, OD_RANGE1(1, 1), OD_SPAN(y), OD_SPAN(y), OD_F32(2)), OD_ERR_ARGUMENT);
    CONTAINS(od_error_message(), "device_check:check_axpi: expected 6 arguments, found 5");
    cr_assert_eq(OD_LAUNCH(axpi, OD_RANGE1(1, 1), OD_SPAN(y), OD_SPAN(y), OD_U64(2), OD_U32(1)), OD_ERR_ARGUMENT);
    CONTAINS(od_error_message(), "device_check:check_axpi, argument 4");
    cr_assert_eq(OD_LAUNCH(axpi, OD_RANGE1(1, 1), OD_SPAN(y), OD_U64(0), OD_BUF(y.buffer), OD_F32(2), OD_U32(1)),
                 OD_ERR_ARGUMENT);
    CONTAINS(od_error_message(), "argument 2");
    size_t over = od_device_get_info(device)->max_work_group * 2;
    cr_assert_neq(OD_LAUNCH(axpi, OD_RANGE1(1, over), OD_SPAN(y), OD_SPAN(y), OD_F32(2), OD_U32(1)), OD_OK);
    CONTAINS(od_error_message(), "check_axpi");
    size_t much = (size_t)od_device_get_info(device)->local_bytes + 4;
    cr_assert_eq(OD_LAUNCH(reverse, OD_RANGE1(1, 1), OD_SPAN(y), OD_SPAN(y), OD_LOCAL(much)), OD_ERR_UNSUPPORTED);
    CONTAINS(od_error_message(), "local memory");
    check_axpi(device); /* none of that leaves harm */
    od_buffer_release(y.buffer);
    od_device_close(device);
}

Test(device, unknown_names) {
    od_device *device = open_device((od_device_options){0});
    od_kernel *kernel = (od_kernel *)1;
    cr_assert_eq(od_kernel_get(device, "devise_check", "", "x", &kernel), OD_ERR_ARGUMENT);
    CONTAINS(od_error_message(), "the nearest name is 'device_check'");
    cr_assert_eq(od_kernel_get(device, "device_check", "", "check_nothing", &kernel), OD_ERR_ARGUMENT);
    CONTAINS(od_error_message(), "check_nothing");
    cr_assert_null(kernel);
    od_device_close(device);
}

Test(device, build_error_carries_the_log) {
    od_device *device = open_device((od_device_options){0});
    od_kernel *kernel;
    cr_assert_eq(od_kernel_get(device, "device_check", "-Dshared=1", "check_axpi", &kernel), OD_ERR_BUILD);
    CONTAINS(od_error_message(), "device_check.cl does not build");
    CONTAINS(od_error_message(), "-Dshared=1");
    CONTAINS(od_error_message(), "error:");
    if (!is_simulator(device)) /* it numbers the lines of the whole text */
        CONTAINS(od_error_message(), "device_check.cl:");
    cr_assert_null(kernel);
    check_axpi(device);
    od_device_close(device);
}

/* ---- random numbers ---------------------------------------------------------------------------------------------- */

Test(device, philox_is_the_hosts) {
    od_device *device = open_device((od_device_options){0});
    const uint32_t key[2] = {0xdeadbeef, 0x12345678}, stream = 0xfffffff0, purpose = OD_RNG_TEST;
    uint32_t bits[N][4];
    float unit[N];
    od_buffer *b;
    od_span u;
    MUST(od_buffer_create(device, sizeof bits, &b));
    MUST(od_span_create(device, N, &u));
    MUST(OD_LAUNCH(get(device, "check_philox"), OD_RANGE1(N, 64), OD_SPAN(od_span_of(b)), OD_SPAN(u), OD_U32(key[0]),
                   OD_U32(key[1]), OD_U32(stream), OD_U32(purpose), OD_U32(N)));
    MUST(od_buffer_read(b, 0, bits, sizeof bits));
    MUST(od_span_read(u, unit, N));
    for (uint32_t i = 0; i < N; i++) {
        uint32_t host[4];
        od_philox(host, (const uint32_t[]){i, 0, stream, purpose}, key);
        cr_assert_eq(memcmp(host, bits[i], sizeof host), 0, "block %u", i);
        cr_assert_eq(od_rng_u01(host[0]), unit[i]);
    }
    od_buffer_release(b);
    od_buffer_release(u.buffer);
    od_device_close(device);
}

/* ---- profile ----------------------------------------------------------------------------------------------------- */

Test(device, profile) {
    od_device *device = open_device((od_device_options){.profile = true});
    od_profile_row *rows;
    size_t count;
    od_span y;
    MUST(od_span_create(device, N, &y));
    /* The first launch may compile: PoCL counts that as the kernel's time. */
    MUST(OD_LAUNCH(get(device, "check_axpi"), OD_RANGE1(N, 64), OD_SPAN(y), OD_SPAN(y), OD_F32(0), OD_U32(N)));
    MUST(OD_LAUNCH(get(device, "check_null"), OD_RANGE1(1, 1), OD_SPAN(y), OD_SPAN(y)));
    MUST(od_device_finish(device));
    od_device_profile_reset(device);
    for (int i = 0; i < 1100; i++) /* more than may be pending */
        MUST(OD_LAUNCH(get(device, "check_axpi"), OD_RANGE1(N, 64), OD_SPAN(y), OD_SPAN(y), OD_F32(0), OD_U32(N)));
    MUST(OD_LAUNCH(get(device, "check_null"), OD_RANGE1(1, 1), OD_SPAN(y), OD_SPAN(y)));
    MUST(od_device_profile(device, &rows, &count));
    cr_assert_eq(count, 2);
    cr_assert_str_eq(rows[0].kernel, "device_check:check_axpi");
    cr_assert_eq(rows[0].launches, 1100);
    cr_assert_gt(rows[0].seconds, rows[1].seconds);
    cr_assert_lt(rows[0].seconds, 60);
    free(rows);
    od_device_profile_reset(device);
    MUST(od_device_profile(device, &rows, &count));
    cr_assert_eq(count, 0);
    free(rows);
    od_buffer_release(y.buffer);
    od_device_close(device);
    device = open_device((od_device_options){0});
    check_axpi(device);
    MUST(od_device_profile(device, &rows, &count));
    cr_assert_eq(count, 0, "nothing without profile");
    free(rows);
    od_device_close(device);
}

/* ---- binary cache ------------------------------------------------------------------------------------------------ */

/* Open, run a kernel of the one program, close: what did the program cost? */
static od_build_stats run_once(od_device_options options) {
    od_device *device = open_device(options);
    check_axpi(device);
    od_build_stats stats = od_device_build_stats(device);
    cr_assert_gt(stats.seconds, 0);
    od_device_close(device);
    return stats;
}

static void expect(unsigned built, unsigned cached, unsigned rejected) {
    od_build_stats s = run_once((od_device_options){.cache = OD_CACHE_ALWAYS});
    cr_assert(s.built == built && s.cached == cached && s.rejected == rejected,
              "expected %u built, %u cached, %u rejected, found %u, %u, %u", built, cached, rejected, s.built, s.cached,
              s.rejected);
}

/* Skips the test on Oclgrind, whose binaries are never kept (device/quirks.c). */
static void need_binaries(void) {
    od_device *device = open_device((od_device_options){0});
    bool simulator = is_simulator(device);
    od_device_close(device);
    if (simulator)
        cr_skip_test("Oclgrind keeps no binaries");
}

/* The path of the only entry, after a cold build. */
static const char *cold_entry(void) {
    static char path[600];
    need_binaries();
    expect(1, 0, 0);
    DIR *dir = opendir(scratch_path("offdiag"));
    cr_assert_not_null(dir);
    int found = 0;
    for (struct dirent *e = readdir(dir); e; e = readdir(dir))
        if (e->d_name[0] != '.') {
            (void)snprintf(path, sizeof path, "%s/%s", scratch_path("offdiag"), e->d_name);
            found++;
        }
    (void)closedir(dir);
    cr_assert_eq(found, 1);
    return path;
}

static void damage(const char *path, char *data, size_t bytes) {
    MUST(od_file_write_atomic(path, data, bytes));
    expect(1, 0, 1); /* refused, built again, right results (run_once checks them), and stored again */
    expect(0, 1, 0);
}

Test(device, cache_cold_then_warm) {
    struct stat info;
    const char *path = cold_entry();
    cr_assert_eq(stat(scratch_path("offdiag"), &info), 0);
    cr_assert_eq(info.st_mode & 0777, 0700);
    cr_assert_gt(strlen(path), 64);
    expect(0, 1, 0);
    od_build_stats s = run_once((od_device_options){.cache = OD_CACHE_NEVER});
    cr_assert(s.built == 1 && s.cached == 0);
}

/* PoCL keeps its kernels itself; to give us binaries it would compile each once more. */
Test(device, cache_left_to_drivers_that_keep_one) {
    od_device *device = open_device((od_device_options){0});
    const bool pocl = od_contains_nocase(od_device_get_info(device)->platform, "portable computing");
    od_device_close(device);
    if (!pocl)
        cr_skip_test("for PoCL");
    for (int i = 0; i < 2; i++) {
        od_build_stats s = run_once((od_device_options){0});
        cr_assert(s.built == 1 && s.cached == 0);
    }
    cr_assert_neq(access(scratch_path("offdiag"), F_OK), 0);
}

Test(device, cache_truncated, .timeout = 60) {
    char *data;
    size_t bytes;
    const char *path = cold_entry();
    MUST(od_file_read(path, 1 << 28, &data, &bytes));
    size_t cuts[] = {0, 100, 152, bytes - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++)
        damage(path, data, cuts[i]);
    free(data);
}

Test(device, cache_bits_flipped, .timeout = 60) {
    char *data;
    size_t bytes;
    const char *path = cold_entry();
    MUST(od_file_read(path, 1 << 28, &data, &bytes));
    size_t places[] = {0, 9, 20, 100, 151, bytes / 2};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        data[places[i]] ^= 0x10;
        damage(path, data, bytes);
        data[places[i]] ^= 0x10;
    }
    free(data);
}

Test(device, cache_garbage_and_oversize, .timeout = 60) {
    char garbage[4096];
    const char *path = cold_entry();
    for (size_t i = 0; i < sizeof garbage; i++)
        garbage[i] = (char)(i * 31);
    damage(path, garbage, sizeof garbage);
    cr_assert_eq(truncate(path, (off_t)1 << 33), 0); /* sparse: 8 GiB that must not be read */
    expect(1, 0, 1);
    expect(0, 1, 0);
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(mkdir(path, 0700), 0); /* can't be replaced either */
    expect(1, 0, 1);
    expect(1, 0, 1);
}

/* What a driver's compiler prints goes to the user's terminal. */
Test(device, compilers_are_silent) {
    static const char *const programs[][3] = {
        {"rows", "-DV=16", "sum_partials"},
        {"norm", "-DV=16 -DNV=4 -DTX=1 -DTY=1", "apply"},
        {"conv_cpu", "-DVW=16 -DVECS=2 -DROWS=6", "conv_pack"},
        {"knn", "-DW=16 -DTEAM=1", "knn_best_serial"},
    };
    (void)setenv("POCL_CACHE_DIR", scratch_path("pocl"), 1);
    od_device *device = open_device((od_device_options){.cache = OD_CACHE_NEVER});
    char *said = NULL;
    size_t bytes = 0;
    if (is_simulator(device))
        cr_skip_test("a simulator prints what it pleases");
    const int terminal = dup(STDERR_FILENO);
    cr_assert(terminal >= 0 && freopen(scratch_path("said"), "w", stderr) != NULL);
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        od_kernel *kernel;
        MUST(od_kernel_get(device, programs[i][0], programs[i][1], programs[i][2], &kernel));
    }
    cr_assert(fflush(stderr) == 0 && dup2(terminal, STDERR_FILENO) >= 0);
    MUST(od_file_read(scratch_path("said"), 1 << 20, &said, &bytes));
    cr_assert_eq(bytes, 0, "%s", said);
    free(said);
    od_device_close(device);
}

/* Whole, and its sums right, but of another program: the key inside gives it away. */
Test(device, cache_of_another_key) {
    char *data, other[600];
    size_t bytes;
    const char *path = cold_entry();
    MUST(od_file_read(path, 1 << 28, &data, &bytes));
    (void)snprintf(other, sizeof other, "%s", path);
    char *digit = strrchr(other, '/') + 1;
    *digit = *digit == 'a' ? 'b' : 'a';
    data[16] = *digit; /* the key in the header; now it names the other file truly */
    MUST(od_file_write_atomic(other, data, bytes));
    MUST(od_file_write_atomic(path, data, bytes)); /* and this one falsely */
    expect(1, 0, 1);
    free(data);
}

Test(device, cache_unusable_directory) {
    MUST(od_file_write_atomic(scratch_path("offdiag"), "", 0)); /* a file is in the way */
    expect(1, 0, 0);
    cr_assert_eq(unlink(scratch_path("offdiag")), 0);
    cr_assert_eq(mkdir(scratch_path("offdiag"), 0700), 0);
    cr_assert_eq(chmod(scratch_path("offdiag"), 0777), 0); /* others could plant binaries */
    expect(1, 0, 0);
    (void)setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    expect(1, 0, 0);
}
