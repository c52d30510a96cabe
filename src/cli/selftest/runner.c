#include "cli/selftest/runner.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/grow.h"
#include "base/rng.h"

/* NaNs, told apart by their bits: around tensors, and in outputs before the operation. */
enum { GUARD = 64, GUARD_BITS = 0x7fc0dea1, UNSET_BITS = 0x7fc0beef };
#define FNV_START 0xcbf29ce484222325u

/* ---- cases ------------------------------------------------------------------------------------------------------- */

static void fail_case(od_check *k, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void fail_case(od_check *k, const char *format, ...) {
    if (k->bad)
        return;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(k->why, sizeof k->why, format, args);
    va_end(args);
    k->bad = true;
    if (k->again && k->first_at < k->first_count && k->firsts[k->first_at].bad)
        return;
    k->counted = true;
    k->row->failed++;
    if (k->failed++ < OD_CHECK_TOLD)
        (void)snprintf(k->told[k->failed - 1], sizeof k->told[0], "%s (%s): %s, %s offsets: %s%s", k->row->operation,
                       od_family_name(k->row->family), k->name, k->aligned ? "aligned" : "odd",
                       k->again ? "the second run: " : "", k->why);
}

void od_check_begin(od_check *k, od_device *device, bool aligned) {
    k->device = device;
    k->aligned = aligned;
}

void od_check_operation(od_check *k, const char *operation) {
    od_check_end(k);
    od_family family = od_device_family(k->device);
    size_t i = 0;
    while (i < k->row_count && (k->rows[i].family != family || strcmp(k->rows[i].operation, operation) != 0))
        i++;
    if (i == k->row_count && i < OD_CHECK_ROWS)
        k->rows[k->row_count++] = (od_check_row){.operation = operation, .family = family};
    if (i == OD_CHECK_ROWS)
        k->stopped = od_fail(OD_ERR_ARGUMENT, "self-test: more than %d rows", OD_CHECK_ROWS);
    k->row = &k->rows[i < OD_CHECK_ROWS ? i : 0];
}

void od_check_skip(od_check *k, const char *reason) {
    (void)snprintf(k->row->skipped, sizeof k->row->skipped, "%s", reason);
}

void od_check_case(od_check *k, const char *format, ...) {
    od_check_end(k);
    va_list args;
    va_start(args, format);
    (void)vsnprintf(k->name, sizeof k->name, format, args);
    va_end(args);
    k->open = true;
    k->bad = k->counted = false;
    k->why[0] = '\0';
    k->case_worst = 0;
    k->verdicts = 0;
    if (!k->again) {
        k->cases++;
        k->row->cases++;
    }
    if (k->on_case)
        k->on_case(k);
}

/* The tensor with its guard bands, malloc'd. */
static uint32_t *read_all(od_check *k, const od_check_tensor *t) {
    size_t total = t->span.offset + t->elements + GUARD;
    uint32_t *words = malloc(total * sizeof *words);
    if (!words)
        k->stopped = od_fail(OD_ERR_MEMORY, "self-test: no host memory for %zu elements", total);
    else if (od_buffer_read(t->span.buffer, 0, words, total * sizeof *words)) {
        fail_case(k, "%s", od_error_message());
        free(words);
        words = NULL;
    }
    return words;
}

static uint64_t fnv1a(uint64_t hash, const void *data, size_t bytes) {
    for (const unsigned char *p = data; bytes > 0; bytes--, p++)
        hash = (hash ^ *p) * 0x100000001b3u;
    return hash;
}

static void check_surroundings(od_check *k, const od_check_tensor *t, uint64_t *digest) {
    uint32_t *words = read_all(k, t);
    size_t begin = t->span.offset, end = begin + t->elements;
    for (size_t i = 0; words && i < end + GUARD; i++)
        if ((i < begin || i >= end) && words[i] != GUARD_BITS) {
            fail_case(k, "written outside a tensor of %zu elements, at %zd", t->elements, (ssize_t)(i - begin));
            break;
        }
    if (words && t->words && memcmp(words + begin, t->words, t->elements * sizeof *words) != 0)
        fail_case(k, "an input of %zu elements was changed", t->elements);
    if (words)
        *digest = fnv1a(*digest, words, (end + GUARD) * sizeof *words);
    free(words);
}

/* The first run's digest, or a comparison with it. */
static void remember_or_compare(od_check *k, uint64_t digest) {
    if (k->again) {
        const od_check_first *first = k->first_at < k->first_count ? &k->firsts[k->first_at] : NULL;
        if (!first || (!first->bad && first->digest != digest))
            fail_case(k, "its results differ in their bits from the first run's");
        k->first_at++;
        return;
    }
    od_check_first *more = od_grow(k->firsts, k->first_count, &k->first_room, sizeof *more);
    if (!more) {
        k->stopped = od_fail(OD_ERR_MEMORY, "self-test: no memory for more than %zu cases", k->first_count);
        return;
    }
    k->firsts = more;
    k->firsts[k->first_count++] = (od_check_first){digest, k->bad};
}

void od_check_end(od_check *k) {
    if (!k->open)
        return;
    uint64_t digest = FNV_START;
    for (size_t i = 0; i < k->tensor_count; i++) {
        check_surroundings(k, &k->tensors[i], &digest);
        od_buffer_release(k->tensors[i].span.buffer);
    }
    if (!k->bad && !k->stopped && k->verdicts == 0)
        fail_case(k, "nothing was compared");
    const char *complaint = k->complaint ? k->complaint(k) : NULL;
    if (complaint)
        fail_case(k, "%s", complaint);
    remember_or_compare(k, digest);
    if (k->on_result)
        k->on_result(k);
    for (size_t i = 0; i < k->block_count; i++)
        free(k->blocks[i]);
    k->tensor_count = k->block_count = 0;
    k->open = false;
}

const od_check_group od_check_groups[] = {
    {"conv", od_check_conv},
    {"dense", od_check_dense},
    {"norm", od_check_norm},
    {"pointwise", od_check_pointwise},
    {"pool", od_check_pool},
    {"loss", od_check_loss},
    {"optim", od_check_optim},
    {"augment", od_check_augment},
    {"knn", od_check_knn},
    {"theory", od_check_theory},
    {NULL, NULL},
};

od_status od_check_run(od_check *k, od_device *device, const od_check_group *group) {
    for (int aligned = 0; aligned < 2; aligned++) {
        k->first_count = k->first_at = 0;
        for (int again = 0; again < 2 && !k->stopped; again++) {
            k->again = again;
            od_check_begin(k, device, aligned);
            group->run(k);
            od_check_end(k);
        }
    }
    k->again = false;
    return k->stopped;
}

od_status od_check_family(od_check *k, od_device *device) {
    od_status status = OD_OK;
    for (const od_check_group *g = od_check_groups; g->name && !status; g++)
        status = od_check_run(k, device, g);
    return status;
}

void od_check_free(od_check *k) {
    free(k->firsts);
    k->firsts = NULL;
    k->first_count = k->first_room = 0;
}

od_status od_check_verdict(const od_check *k, const od_device_info *info) {
    char text[OD_CHECK_TOLD * (sizeof k->told[0] + 3) + 1] = "";
    size_t used = 0;
    if (!k->failed)
        return OD_OK;
    for (unsigned i = 0; i < k->failed && i < OD_CHECK_TOLD; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "\n  %s", k->told[i]);
    return od_fail(OD_ERR_NUMERIC, "self-test of %s %s, driver %s: %u of %u cases failed:%s%s", info->id, info->name,
                   info->driver, k->failed, k->cases, text, k->failed > OD_CHECK_TOLD ? "\n  ..." : "");
}

/* ---- memory and tensors ------------------------------------------------------------------------------------------ */

void *od_check_alloc(od_check *k, size_t bytes) {
    void *memory = k->block_count < OD_CHECK_BLOCKS ? calloc(1, bytes ? bytes : 1) : NULL;
    if (memory)
        k->blocks[k->block_count++] = memory;
    else
        k->stopped = od_fail(OD_ERR_MEMORY, "self-test: no host memory for %zu bytes", bytes);
    return memory;
}

static uint64_t seed_of(const char *text) {
    return fnv1a(FNV_START, text, strlen(text));
}

float *od_check_normals(od_check *k, size_t elements, uint64_t stream) {
    float *data = od_check_alloc(k, elements * sizeof *data);
    if (data)
        od_rng_fill_normal(data, elements, 1.0f, seed_of(k->name), stream);
    return data;
}

float *od_check_uniforms(od_check *k, size_t elements, uint64_t stream) {
    float *data = od_check_alloc(k, elements * sizeof *data);
    if (data)
        od_rng_fill_uniform(data, elements, 0.0f, 1.0f, seed_of(k->name), stream);
    return data;
}

static od_span make_tensor(od_check *k, const void *words, size_t elements, const void *keep) {
    od_check_tensor t = {.span.offset = GUARD + (k->aligned ? 0 : 3), .elements = elements, .words = keep};
    size_t total = t.span.offset + elements + GUARD;
    uint32_t *all = od_check_alloc(k, total * sizeof *all);
    if (!all || k->bad)
        return OD_NO_SPAN;
    if (k->tensor_count == OD_CHECK_TENSORS) {
        k->stopped = od_fail(OD_ERR_ARGUMENT, "self-test: more than %d tensors", OD_CHECK_TENSORS);
        return OD_NO_SPAN;
    }
    for (size_t i = 0; i < total; i++)
        all[i] = i >= t.span.offset && i < t.span.offset + elements ? UNSET_BITS : GUARD_BITS;
    if (words)
        memcpy(all + t.span.offset, words, elements * sizeof *all);
    od_status status = od_buffer_create(k->device, total * sizeof *all, &t.span.buffer);
    if (!status) {
        k->tensors[k->tensor_count++] = t;
        status = od_buffer_write(t.span.buffer, 0, all, total * sizeof *all);
    }
    if (status) {
        fail_case(k, "%s", od_error_message());
        return OD_NO_SPAN;
    }
    return t.span;
}

od_span od_check_input(od_check *k, const void *words, size_t elements) {
    return words ? make_tensor(k, words, elements, words) : OD_NO_SPAN;
}

od_span od_check_inout(od_check *k, const void *words, size_t elements) {
    return words ? make_tensor(k, words, elements, NULL) : OD_NO_SPAN;
}

od_span od_check_output(od_check *k, size_t elements) {
    return make_tensor(k, NULL, elements, NULL);
}

/* ---- verdicts ---------------------------------------------------------------------------------------------------- */

bool od_check_affords(const od_check *k, double work) {
    return k->work_limit == 0 || work <= k->work_limit;
}

bool od_check_ready(const od_check *k) {
    return !k->stopped && !k->bad;
}

bool od_check_ran(od_check *k, od_status status) {
    if (status)
        fail_case(k, "%s", od_error_message());
    return !status;
}

void od_check_that(od_check *k, bool holds, const char *format, ...) {
    char text[200];
    k->verdicts++;
    if (holds)
        return;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    k->row->worst = k->case_worst = INFINITY;
    fail_case(k, "%s", text);
}

/* The open case's tensor at this span, read back with its guards; NULL if that failed (and the case with it). */
static uint32_t *read_tensor(od_check *k, od_span span, const od_check_tensor **tensor) {
    for (size_t i = 0; i < k->tensor_count; i++)
        if (k->tensors[i].span.buffer == span.buffer) {
            *tensor = &k->tensors[i];
            return read_all(k, *tensor);
        }
    fail_case(k, "there is no such tensor");
    return NULL;
}

void od_check_near(od_check *k, const char *name, od_span tensor, const double *ref, double tolerance) {
    const od_check_tensor *t = NULL;
    uint32_t *words = read_tensor(k, tensor, &t);
    if (!words)
        return;
    double error2 = 0, norm2 = 0, largest = 0, scale = 0;
    size_t at = 0;
    for (size_t i = 0; i < t->elements; i++) {
        float out;
        memcpy(&out, &words[t->span.offset + i], sizeof out);
        double error = isfinite(out) ? fabs(out - ref[i]) : INFINITY;
        error2 += error * error;
        norm2 += ref[i] * ref[i];
        scale = fmax(scale, fabs(ref[i]));
        if (error > largest) {
            largest = error;
            at = i;
        }
    }
    double relative = error2 == 0 ? 0 : norm2 > 0 ? sqrt(error2 / norm2) : INFINITY;
    k->case_worst = fmax(k->case_worst, isnan(relative) ? INFINITY : relative);
    k->row->worst = fmax(k->row->worst, k->case_worst);
    float out;
    memcpy(&out, &words[t->span.offset + at], sizeof out);
    free(words);
    k->verdicts++;
    /* A NaN compares false: only what is known to be small passes. */
    if (!(relative <= tolerance && largest <= 32 * tolerance * scale))
        fail_case(k, "%s: relative error %.3g (limit %.3g), largest at %zu of %zu: %.9g, not %.9g", name, relative,
                  tolerance, at, t->elements, out, ref[at]);
}

void od_check_words(od_check *k, const char *name, od_span tensor, const void *words) {
    const od_check_tensor *t = NULL;
    const uint32_t *ref = words;
    uint32_t *out = read_tensor(k, tensor, &t);
    if (!out)
        return;
    size_t i = 0;
    while (i < t->elements && out[t->span.offset + i] == ref[i])
        i++;
    od_check_that(k, i == t->elements, "%s: word %zu of %zu is 0x%08x, not 0x%08x", name, i, t->elements,
                  i < t->elements ? out[t->span.offset + i] : 0, i < t->elements ? ref[i] : 0);
    free(out);
}
