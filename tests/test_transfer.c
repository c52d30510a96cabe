/* Transfers in the background, marks and pinned memory, on a real device (OFFDIAG_TEST_DEVICE, auto by default). */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "offdiag/device.h"

#define CONTAINS(text, part) cr_assert(strstr((text), (part)) != NULL, "expected '%s' in: %s", (part), (text))
#define MUST(call)           cr_assert_eq((call), OD_OK, "%s: %s", #call, od_error_message())

enum { N = 100000 };

static od_device *open_device(od_device_options options) {
    od_device *device;
    MUST(od_device_open(getenv("OFFDIAG_TEST_DEVICE"), &options, &device));
    return device;
}

static float *new_pinned(od_device *device, size_t elements, od_pinned **pinned) {
    MUST(od_pinned_create(device, elements * sizeof(float), pinned));
    cr_assert_not_null(od_pinned_memory(*pinned));
    cr_assert_eq((uintptr_t)od_pinned_memory(*pinned) % 64, 0);
    return od_pinned_memory(*pinned);
}

/* y = 2 x + i */
static void launch_axpi(od_device *device, od_span y, od_span x, size_t n) {
    od_kernel *kernel;
    MUST(od_kernel_get(device, "device_check", "", "check_axpi", &kernel));
    MUST(OD_LAUNCH(kernel, OD_RANGE1(n, 64), OD_SPAN(y), OD_SPAN(x), OD_F32(2), OD_U32((uint32_t)n)));
}

/* Write, launch, read, each in the background, in the order of the queue; then host memory is changed and all again. */
Test(transfer, in_the_order_of_the_queue) {
    od_device *device = open_device((od_device_options){0});
    od_pinned *in, *out;
    float *from = new_pinned(device, N, &in), *to = new_pinned(device, 2 * N, &out);
    od_span x, y;
    MUST(od_span_create(device, N + 3, &x));
    MUST(od_span_create(device, N + 5, &y));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++)
            from[i] = (float)((i + round) % 17);
        memset(to, 0xff, 2 * N * sizeof *to);
        MUST(od_span_write_start(od_span_at(x, 3), from, N));
        launch_axpi(device, od_span_at(y, 5), od_span_at(x, 3), N);
        MUST(od_span_read_start(od_span_at(y, 5), to, N));
        MUST(od_span_zero(od_span_at(y, 5), N)); /* after the read that was started */
        MUST(od_span_read_start(od_span_at(x, 3), to + N, N));
        MUST(od_device_finish(device));
        for (int i = 0; i < N; i++) {
            cr_assert_eq(to[i], (float)(2 * ((i + round) % 17) + i), "round %d, element %d: %g", round, i, to[i]);
            cr_assert_eq(to[N + i], from[i]);
        }
    }
    od_pinned_release(in);
    od_pinned_release(out);
    od_buffer_release(x.buffer);
    od_buffer_release(y.buffer);
    od_device_close(device);
}

/* A read that waits is enough, and memory of any kind will do. More are under way than the list holds at first. */
Test(transfer, many_and_a_read_that_waits) {
    enum { MANY = 300 };
    od_device *device = open_device((od_device_options){0});
    static uint32_t words[MANY], back[MANY];
    uint32_t last;
    od_buffer *b;
    MUST(od_buffer_create(device, sizeof words, &b));
    for (uint32_t i = 0; i < MANY; i++)
        words[i] = i * 2654435761u;
    for (size_t i = 0; i < MANY; i++)
        MUST(od_buffer_write_start(b, 4 * i, &words[i], 4));
    for (size_t i = 0; i < MANY; i++)
        MUST(od_buffer_read_start(b, 4 * i, &back[i], 4));
    MUST(od_buffer_read(b, 0, &last, 4));
    cr_assert_eq(memcmp(words, back, sizeof words), 0);
    MUST(od_buffer_read_start(b, 0, back, 4)); /* nobody waits for this one */
    od_buffer_release(b);
    od_device_close(device);
}

Test(transfer, ranges_are_checked) {
    od_device *device = open_device((od_device_options){0});
    od_buffer *b;
    char data[200] = {0};
    MUST(od_buffer_create(device, 100, &b)); /* capacity is more: it must not count */
    cr_assert_eq(od_buffer_write_start(b, 0, data, 101), OD_ERR_ARGUMENT);
    CONTAINS(od_error_message(), "not in a buffer of 100");
    cr_assert_eq(od_buffer_read_start(b, 50, data, 51), OD_ERR_ARGUMENT);
    cr_assert_eq(od_buffer_read_start(b, SIZE_MAX - 3, data, 8), OD_ERR_ARGUMENT);
    cr_assert_eq(od_span_read_start(OD_NO_SPAN, (float *)data, 1), OD_ERR_ARGUMENT);
    cr_assert_eq(od_span_read_start((od_span){b, SIZE_MAX / 2}, (float *)data, 1), OD_ERR_ARGUMENT);
    cr_assert_eq(od_span_write_start(od_span_of(b), (const float *)data, 26), OD_ERR_ARGUMENT);
    MUST(od_buffer_read_start(b, 100, data, 0));
    MUST(od_device_finish(device));
    od_buffer_release(b);
    od_device_close(device);
}

Test(transfer, pinned_memory_is_counted) {
    enum { MIB = 1 << 20 };
    od_device *device = open_device((od_device_options){.memory_bytes = 8 * MIB});
    const bool shared = od_device_get_info(device)->unified_memory;
    od_pinned *a, *b = (od_pinned *)1;
    od_buffer *buffer;
    MUST(od_buffer_create(device, 4 * MIB, &buffer)); /* idle ones make room */
    od_buffer_release(buffer);
    MUST(od_pinned_create(device, 6 * MIB, &a));
    cr_assert_eq(od_device_memory(device).live, shared ? 6 * MIB : 0);
    if (shared) {
        cr_assert_eq(od_device_memory(device).peak, 6 * MIB);
        cr_assert_eq(od_pinned_create(device, 3 * MIB, &b), OD_ERR_DEVICE_MEMORY);
        cr_assert_null(b);
        CONTAINS(od_error_message(), "over the budget; in use 6.0 MiB, budget 8.0 MiB");
        cr_assert_eq(od_buffer_create(device, 3 * MIB, &buffer), OD_ERR_DEVICE_MEMORY);
    }
    od_pinned_release(a);
    cr_assert_eq(od_device_memory(device).live, 0);
    cr_assert_neq(od_pinned_create(device, SIZE_MAX, &b), OD_OK);
    cr_assert_null(b);
    MUST(od_pinned_create(device, 0, &b));
    od_pinned_release(b);
    od_pinned_release(NULL);
    od_device_close(device);
}

/* ---- marks ------------------------------------------------------------------------------------------------------- */

typedef struct waiter {
    od_mark *mark;
    const float *data;
    float seen; /* of data, once the mark is passed */
    od_status status;
} waiter;

static void *wait_for_mark(void *argument) {
    waiter *w = argument;
    w->status = od_mark_wait(w->mark);
    w->seen = w->data[N - 1];
    return NULL;
}

/* Another thread waits for the first read, while this one queues more. */
Test(transfer, mark_from_another_thread) {
    od_device *device = open_device((od_device_options){0});
    od_pinned *pinned;
    float *to = new_pinned(device, N, &pinned);
    od_span x, y;
    pthread_t thread;
    MUST(od_span_create(device, N, &x));
    MUST(od_span_create(device, N, &y));
    for (int round = 0; round < 20; round++) {
        waiter w = {.data = to};
        MUST(od_buffer_fill(x.buffer, 0, N * sizeof(float), 0x3f800000u + ((uint32_t)round << 20)));
        to[N - 1] = -1;
        MUST(od_span_read_start(x, to, N));
        MUST(od_device_mark(device, &w.mark));
        cr_assert_eq(pthread_create(&thread, NULL, wait_for_mark, &w), 0);
        for (int i = 0; i < 5; i++)
            launch_axpi(device, y, x, N);
        cr_assert_eq(pthread_join(thread, NULL), 0);
        uint32_t bits = 0x3f800000u + ((uint32_t)round << 20);
        MUST(w.status);
        cr_assert_eq(memcmp(&bits, &w.seen, 4), 0, "round %d: %g", round, w.seen);
        od_mark_release(w.mark);
    }
    waiter unused;
    MUST(od_device_mark(device, &unused.mark));
    od_mark_release(unused.mark);
    od_mark_release(NULL);
    od_buffer_release(x.buffer);
    od_buffer_release(y.buffer);
    od_pinned_release(pinned);
    od_device_close(device);
}
