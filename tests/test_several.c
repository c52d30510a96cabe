/* Several open devices in one process, and faults in one of them: OFFDIAG_TEST_DEVICE (auto by default) opened several
 * times, and beside the first usable device of another platform where there is one. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "offdiag/device.h"
#include "offdiag/ops/gemm.h"
#include "scratch.h"

#define CONTAINS(text, part) cr_assert(strstr((text), (part)) != NULL, "expected '%s' in: %s", (part), (text))
#define MUST(call)           cr_assert_eq((call), OD_OK, "%s: %s", #call, od_error_message())

static const char *test_device(void) {
    const char *spec = getenv("OFFDIAG_TEST_DEVICE");
    return spec && *spec ? spec : "auto";
}

static od_device *open_device(od_device_options options) {
    od_device *device;
    MUST(od_device_open(test_device(), &options, &device));
    return device;
}

/* One launch: y = 2 x + i over 8 elements, written nowhere else. */
static od_status launch(od_device *device, od_span y) {
    od_kernel *kernel;
    od_status status = od_kernel_get(device, "device_check", "", "check_axpi", &kernel);
    return status ? status : OD_LAUNCH(kernel, OD_RANGE1(8, 8), OD_SPAN(y), OD_SPAN(y), OD_F32(2), OD_U32(8));
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

enum { M = 40, ROUNDS = 6 };

typedef struct user {
    const char *spec;
    od_device *device;
    float product[M * M];
    od_status status;
    char message[512];
} user;

/* A product by its plainest kernel, for kernels are built cold here. */
static od_status work_once(user *u) {
    const od_gemm_shape gemm = {.m = M, .n = M, .k = M};
    od_span a = {0}, c = {0};
    float host[M * M], back[M * M];
    od_status status;
    for (int i = 0; i < M * M; i++)
        host[i] = (float)((i * 7919) % 251) / 128 - 1;
    if (!(status = od_span_create(u->device, M * M, &a)) && !(status = od_span_create(u->device, M * M, &c)) &&
        !(status = od_span_write(a, host, M * M)) && !(status = od_gemm(u->device, &gemm, c, a, a, 1, 0)) &&
        !(status = od_span_read_start(c, u->product, M * M)) && !(status = od_span_read(a, back, M * M)) &&
        memcmp(host, back, sizeof host) != 0)
        status = od_fail(OD_ERR_NUMERIC, "the input has changed");
    od_buffer_release(a.buffer);
    od_buffer_release(c.buffer);
    return status;
}

static void *work(void *argument) {
    user *u = argument;
    const od_device_options options = {.family = OD_FAMILY_REF};
    u->status = od_device_open(u->spec, &options, &u->device);
    for (int i = 0; i < ROUNDS && !u->status; i++)
        u->status = work_once(u);
    if (u->status)
        (void)snprintf(u->message, sizeof u->message, "%s", od_error_message());
    od_device_close(u->device);
    return NULL;
}

/* Each thread opens its device, works, and closes it; all get what one alone gets (to the bit on equal devices). */
static void check_threads(const char *const *specs, int threads, bool equal) {
    static user users[2], alone;
    pthread_t thread[2];
    for (int i = 0; i < threads; i++) {
        users[i].spec = specs[i];
        cr_assert_eq(pthread_create(&thread[i], NULL, work, &users[i]), 0);
    }
    for (int i = 0; i < threads; i++)
        cr_assert_eq(pthread_join(thread[i], NULL), 0);
    alone.spec = specs[0];
    (void)work(&alone);
    cr_assert_eq(alone.status, OD_OK, "%s", alone.message);
    for (int i = 0; i < threads; i++) {
        cr_assert_eq(users[i].status, OD_OK, "thread %d: %s", i, users[i].message);
        for (int j = 0; j < M * M; j++)
            cr_assert(equal ? users[i].product[j] == alone.product[j]
                            : fabsf(users[i].product[j] - alone.product[j]) < 1e-3f,
                      "thread %d, product %d: %g, alone %g", i, j, users[i].product[j], alone.product[j]);
    }
}

TestSuite(several);

/* With an empty cache, so that threads build the same programs at the same time and store them. */
Test(several, one_device_from_two_threads_cold, .init = scratch_init, .fini = scratch_remove, .timeout = 120) {
    const char *const specs[] = {test_device(), test_device()};
    cr_assert_not_null(scratch_path(""));
    check_threads(specs, 2, true);
}

Test(several, another_platform_beside_it, .timeout = 120) {
    od_device_info *infos;
    size_t count, first;
    const char *other = NULL;
    MUST(od_device_list(&infos, &count));
    MUST(od_device_select(infos, count, test_device(), &first, NULL));
    for (size_t i = 0; i < count && !other; i++)
        if (infos[i].usable && infos[i].platform_index != infos[first].platform_index)
            other = infos[i].id;
    if (!other) {
        free(infos);
        cr_skip_test("one platform only");
    }
    const char *const specs[] = {infos[first].id, other};
    check_threads(specs, 2, false);
    free(infos);
}

static od_status build_and_run(od_build_stats *stats) {
    od_device *device;
    od_span y = {0};
    float host[8] = {0};
    od_status status = od_device_open(test_device(), &(od_device_options){.cache = OD_CACHE_ALWAYS}, &device);
    if (!status && !(status = od_span_create(device, 8, &y)) && !(status = od_span_write(y, host, 8)) &&
        !(status = launch(device, y)) && !(status = od_span_read(y, host, 8)) && host[7] != 7)
        status = od_fail(OD_ERR_NUMERIC, "7 is %g", host[7]);
    if (stats)
        *stats = od_device_build_stats(device);
    od_buffer_release(y.buffer);
    od_device_close(device);
    return status;
}

/* Three processes build and store the same programs at once: each is right, and what is left is whole. */
Test(several, processes_share_an_empty_cache, .init = scratch_init, .fini = scratch_remove, .timeout = 120) {
    enum { PROCESSES = 3 };
    pid_t children[PROCESSES];
    if (strstr(test_device(), "clgrind"))
        cr_skip_test("Oclgrind keeps no binaries");
    for (int i = 0; i < PROCESSES; i++) {
        children[i] = fork(); /* before this process has called OpenCL */
        cr_assert_geq(children[i], 0);
        if (children[i] == 0)
            _exit(build_and_run(NULL) ? 1 : 0);
    }
    for (int i = 0; i < PROCESSES; i++) {
        int state = -1;
        cr_assert_eq(waitpid(children[i], &state, 0), children[i]);
        cr_assert_eq(state, 0, "process %d ended with %d", i, state);
    }
    DIR *dir = opendir(scratch_path("offdiag"));
    cr_assert_not_null(dir);
    for (const struct dirent *e = readdir(dir); e; e = readdir(dir))
        cr_assert_null(strstr(e->d_name, ".tmp"), "%s is left", e->d_name);
    (void)closedir(dir);
    od_build_stats stats;
    MUST(build_and_run(&stats));
    cr_assert(stats.built == 0 && stats.rejected == 0 && stats.cached == 1, "%u built, %u rejected", stats.built,
              stats.rejected);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

Test(several, budget_is_divided) {
    od_device *a = open_device((od_device_options){0});
    const uint64_t whole = od_device_memory(a).budget;
    od_device *b = open_device((od_device_options){0});
    cr_assert_eq(od_device_memory(a).budget, whole / 2);
    cr_assert_eq(od_device_memory(b).budget, whole / 2);
    od_device *given = open_device((od_device_options){.memory_bytes = 64 << 20}); /* counts for itself */
    cr_assert_eq(od_device_memory(given).budget, 64 << 20);
    cr_assert_eq(od_device_memory(a).budget, whole / 2);
    od_device *shared = open_device((od_device_options){.processes = 2});
    cr_assert_eq(od_device_memory(shared).budget, whole / 3 / 2);
    cr_assert_eq(od_device_memory(a).budget, whole / 3);
    od_device_close(shared);
    od_device_close(b);
    cr_assert_eq(od_device_memory(a).budget, whole);
    od_buffer *x;
    MUST(od_buffer_create(a, 1 << 20, &x)); /* each counts its own */
    cr_assert_geq(od_device_memory(a).live, 1 << 20);
    cr_assert_eq(od_device_memory(given).live, 0);
    od_buffer_release(x);
    od_device_close(given);
    od_device_close(a);
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

Test(several, fault_of_a_launch_loses_the_device) {
    (void)setenv("OFFDIAG_FAULT", "launch:1:3", 1);
    od_device *first = open_device((od_device_options){0}), *second = open_device((od_device_options){0});
    od_span x, y;
    float host[8];
    MUST(od_span_create(first, 8, &x));
    MUST(od_span_create(second, 8, &y));
    for (int i = 0; i < 2; i++)
        MUST(launch(second, y));
    cr_assert_eq(launch(second, y), OD_ERR_DEVICE);
    CONTAINS(od_error_message(), "clEnqueueNDRangeKernel");
    CONTAINS(od_error_message(), "check_axpi");
    CONTAINS(od_error_message(), "CL_OUT_OF_RESOURCES");
    CONTAINS(od_error_message(), od_device_get_info(second)->name);
    cr_assert_eq(launch(second, y), OD_ERR_DEVICE);
    cr_assert_eq(od_span_read(y, host, 8), OD_ERR_DEVICE);
    cr_assert_eq(od_span_read_start(y, host, 8), OD_ERR_DEVICE);
    cr_assert_eq(od_span_write(y, host, 8), OD_ERR_DEVICE);
    cr_assert_eq(od_span_write_start(y, host, 8), OD_ERR_DEVICE);
    cr_assert_eq(od_span_zero(y, 8), OD_ERR_DEVICE);
    cr_assert_eq(od_device_flush(second), OD_ERR_DEVICE);
    cr_assert_eq(od_device_finish(second), OD_ERR_DEVICE);
    od_span z;
    cr_assert_eq(od_span_create(second, 8, &z), OD_ERR_DEVICE);
    od_mark *mark = (od_mark *)1;
    cr_assert_eq(od_device_mark(second, &mark), OD_ERR_DEVICE);
    cr_assert_null(mark);
    for (int i = 0; i < 5; i++) /* the other one is well */
        MUST(launch(first, x));
    MUST(od_span_read(x, host, 8));
    od_buffer_release(x.buffer);
    od_buffer_release(y.buffer);
    od_device_close(second);
    od_device_close(first);
}

Test(several, fault_of_a_read_comes_to_light_with_the_next_wait) {
    (void)setenv("OFFDIAG_FAULT", "read:0:2,read:1:1,read:2:1", 1);
    float host[8] = {0};
    for (int i = 0; i < 3; i++) {
        od_device *device = open_device((od_device_options){0});
        od_span x;
        MUST(od_span_create(device, 8, &x));
        MUST(od_span_write(x, host, 8));
        if (i == 0)
            MUST(od_span_read(x, host, 8));
        if (i < 2) {
            MUST(od_span_read_start(od_span_at(x, 3), host, 5));
            cr_assert_eq(i == 0 ? od_device_finish(device) : od_span_read(x, host, 8), OD_ERR_DEVICE);
            CONTAINS(od_error_message(), "clEnqueueReadBuffer");
            CONTAINS(od_error_message(), "20 bytes at 12, in the background: CL_OUT_OF_RESOURCES");
        } else
            cr_assert_eq(od_span_read(x, host, 8), OD_ERR_DEVICE);
        cr_assert_eq(od_device_finish(device), OD_ERR_DEVICE);
        CONTAINS(od_error_message(), "clFinish");
        od_buffer_release(x.buffer);
        od_device_close(device);
    }
}

Test(several, fault_of_memory_is_one_allocation) {
    (void)setenv("OFFDIAG_FAULT", "memory:0:2", 1);
    od_device *device = open_device((od_device_options){0});
    od_span x, y = {(od_buffer *)1, 0};
    MUST(od_span_create(device, 8, &x));
    cr_assert_eq(od_span_create(device, 8, &y), OD_ERR_DEVICE_MEMORY);
    cr_assert_null(y.buffer);
    CONTAINS(od_error_message(), "no memory for a buffer of 32 bytes");
    MUST(od_span_create(device, 8, &y));
    MUST(launch(device, y));
    MUST(od_device_finish(device));
    od_buffer_release(x.buffer);
    od_buffer_release(y.buffer);
    od_device_close(device);
}

Test(several, faults_are_parsed_strictly) {
    static const char *const wrong[] = {"launch",
                                        "launch:0",
                                        "launch:0:",
                                        "launch:0:0",
                                        "launch::1",
                                        "launch:0:1x",
                                        "launch:0:1,",
                                        ",launch:0:1",
                                        "launch:-1:1",
                                        "launch:0: 1",
                                        "lunch:0:1",
                                        "launch:0:1:1",
                                        "launch:0:99999999999999999999",
                                        " launch:0:1",
                                        ":0:1",
                                        "launch:0:1;read:0:1"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        od_device *device = (od_device *)1;
        (void)setenv("OFFDIAG_FAULT", wrong[i], 1);
        cr_assert_eq(od_device_open(test_device(), NULL, &device), OD_ERR_USAGE, "'%s' is taken", wrong[i]);
        cr_assert_null(device);
        CONTAINS(od_error_message(), "expected KIND:DEVICE:N");
    }
    (void)setenv("OFFDIAG_FAULT", "", 1);
    od_device_close(open_device((od_device_options){0}));
}
