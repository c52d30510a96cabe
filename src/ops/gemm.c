/* od_gemm: checks its arguments, then hands the product to the first variant that accepts it. */
#include "offdiag/ops/gemm.h"

#include <string.h>

#include "base/log.h"
#include "ops/gemm_impl.h"
#include "ops/tunable.h"
#include "ops/variant.h"

/* Whether CLBlast is worth its check: not on a CPU, nor on Oclgrind, a simulator that calls itself a GPU. */
static bool clblast_wanted(const od_device *device) {
    const od_device_info *info = od_device_get_info(device);
    return od_device_family(device) == OD_FAMILY_GPU && info->type != OD_DEVICE_CPU &&
           !strstr(info->platform, "Oclgrind");
}

/* Which of two variants that both run is taken. */
const od_tuning_table od_gemm_choice_table = {
    .variant = "gemm",
    .shape = OD_GEMM_CLASSES,
    .parameters = {{"clblast", OD_TUNING_VALUES(0, 1), "1: CLBlast before the own kernel, on GPUs"}},
    .count = 1,
};

static bool clblast_supports(const od_device *device, const void *shape, const char **why) {
    char class[64];
    int clblast = 1;
    *why = clblast_wanted(device) ? od_gemm_clblast_refusal(device) : "CLBlast's kernels are made for GPUs";
    if (*why)
        return false;
    od_gemm_class(class, shape);
    (void)od_tuning_lookup(device, &od_gemm_choice_table, class, &clblast);
    *why = clblast ? NULL : "a tuning row prefers the own kernel";
    return !*why;
}

/* On a CPU device its own kernels come first; CLBlast reaches a tenth of them there. */
static const od_variant variants[] = {
    {"cpu", OD_FAMILY_CPU, NULL, (const void *)od_gemm_cpu},
    {"clblast", OD_FAMILY_GPU, clblast_supports, (const void *)od_gemm_clblast},
    {"gpu", OD_FAMILY_GPU, NULL, (const void *)od_gemm_gpu},
    {"ref", OD_FAMILY_REF, NULL, (const void *)od_gemm_ref},
};
enum { VARIANTS = sizeof variants / sizeof variants[0] };

const char *const *od_gemm_variants(void) {
    static const char *const names[] = {"cpu", "clblast", "gpu", "ref", NULL};
    return names;
}

/* Fill in leading dimension *ld of a stored (rows, columns) matrix and check that it lies inside its buffer. */
static od_status check_operand(const char *name, od_span span, int rows, int columns, int *ld) {
    if (*ld == 0)
        *ld = columns > 0 ? columns : 1;
    if (*ld < columns)
        return od_fail(OD_ERR_ARGUMENT, "gemm: leading dimension %d of %s is below its %d columns", *ld, name, columns);
    if (rows == 0 || columns == 0)
        return OD_OK;
    if (!span.buffer)
        return od_fail(OD_ERR_ARGUMENT, "gemm: no buffer for %s (%d, %d)", name, rows, columns);
    const size_t have = od_buffer_size(span.buffer) / sizeof(float);
    const size_t need = (size_t)(rows - 1) * (size_t)*ld + (size_t)columns;
    if (span.offset > have || need > have - span.offset)
        return od_fail(OD_ERR_ARGUMENT,
                       "gemm: %s (%d, %d) with leading dimension %d at offset %zu passes the end of its "
                       "buffer of %zu elements",
                       name, rows, columns, *ld, span.offset, have);
    return OD_OK;
}

static od_status make_call(od_gemm_call *call, const od_gemm_shape *shape, od_span c, od_span a, od_span b, float alpha,
                           float beta) {
    *call = (od_gemm_call){*shape, c, a, b, alpha, beta};
    od_gemm_shape *s = &call->shape;
    if (s->m < 0 || s->n < 0 || s->k < 0)
        return od_fail(OD_ERR_ARGUMENT, "gemm: negative size in m %d, n %d, k %d", s->m, s->n, s->k);
    od_status status = check_operand("C", c, s->m, s->n, &s->ldc);
    if (status == OD_OK && s->m > 0 && s->n > 0)
        status = check_operand("A", a, s->trans_a ? s->k : s->m, s->trans_a ? s->m : s->k, &s->lda);
    if (status == OD_OK && s->m > 0 && s->n > 0)
        status = check_operand("B", b, s->trans_b ? s->n : s->k, s->trans_b ? s->k : s->n, &s->ldb);
    return status;
}

static od_status run(od_device *device, const od_variant *variant, od_gemm_call *call) {
    od_gemm_shape *s = &call->shape;
    if (s->m == 0 || s->n == 0)
        return OD_OK;
    if (s->k == 0) { /* C = beta C: ref reads neither operand then, and any buffer stands for them */
        call->a = call->b = call->c;
        return od_gemm_ref(device, call);
    }
    const uint64_t limit = od_device_loop_limit(device) / OD_GEMM_LOOPS;
    const int k = s->k, piece = limit && limit < (uint64_t)k ? (int)limit : k;
    od_status status = OD_OK;
    for (int begin = 0; begin < k && status == OD_OK; begin += piece) { /* each adds to the sum of those before */
        s->k = piece < k - begin ? piece : k - begin;
        status = ((od_gemm_fn)variant->run)(device, call);
        call->a.offset += (size_t)piece * (s->trans_a ? (size_t)s->lda : 1);
        call->b.offset += (size_t)piece * (s->trans_b ? 1 : (size_t)s->ldb);
        call->beta = 1.0f;
    }
    return status;
}

od_status od_gemm(od_device *device, const od_gemm_shape *shape, od_span c, od_span a, od_span b, float alpha,
                  float beta) {
    od_gemm_call call;
    od_status status = make_call(&call, shape, c, a, b, alpha, beta);
    if (status != OD_OK)
        return status;
    if (clblast_wanted(device))
        od_gemm_clblast_check(device);
    return run(device, &variants[od_variant_choose(device, "gemm", variants, VARIANTS, shape)], &call);
}

od_status od_gemm_variant(od_device *device, const char *variant, const od_gemm_shape *shape, od_span c, od_span a,
                          od_span b, float alpha, float beta) {
    od_gemm_call call;
    od_status status = make_call(&call, shape, c, a, b, alpha, beta);
    if (status != OD_OK)
        return status;
    for (size_t i = 0; i < VARIANTS; i++) {
        if (strcmp(variants[i].name, variant) != 0)
            continue;
        if (variants[i].run == (const void *)od_gemm_clblast) {
            od_gemm_clblast_check(device);
            const char *why = od_gemm_clblast_refusal(device);
            if (why)
                return od_fail(OD_ERR_UNSUPPORTED, "gemm variant clblast: %s", why);
        }
        return run(device, &variants[i], &call);
    }
    return od_fail(OD_ERR_ARGUMENT, "gemm: no variant '%s' (cpu, clblast, gpu, ref)", variant);
}

/* ---- ref, and sums over slices of k ----------------------------------------------------------------------------- */

od_work od_gemm_work(const od_gemm_call *call, int slices) {
    const double m = call->shape.m, n = call->shape.n, k = call->shape.k;
    const double results = slices > 1 ? slices : call->beta == 0.0f ? 1 : 2; /* of C's size, read or written */
    return (od_work){2 * m * n * k, sizeof(float) * (m * k + k * n + results * m * n)};
}

od_status od_gemm_ref(od_device *device, const od_gemm_call *call) {
    const od_gemm_shape *s = &call->shape;
    od_kernel *kernel;
    od_status status = od_kernel_get(device, "gemm_ref", "", "gemm_ref", &kernel);
    if (status != OD_OK)
        return status;
    od_range range = OD_RANGE2(s->n, s->m, 0, 0);
    range.work = od_gemm_work(call, 1);
    return OD_LAUNCH(kernel, range, OD_SPAN(call->c), OD_SPAN(call->a), OD_SPAN(call->b), OD_I32(s->m), OD_I32(s->n),
                     OD_I32(s->k), OD_U64(s->lda), OD_U64(s->ldb), OD_U64(s->ldc), OD_I32(s->trans_a),
                     OD_I32(s->trans_b), OD_F32(call->alpha), OD_F32(call->beta));
}

enum { WORKSPACE_ELEMENTS = 8 << 20 };

od_status od_gemm_slices_begin(od_device *device, const od_gemm_call *call, int wanted, int granule,
                               od_gemm_slices *slices) {
    const od_gemm_shape *s = &call->shape;
    const size_t elements = (size_t)s->m * (size_t)s->n;
    const size_t room = WORKSPACE_ELEMENTS / elements;
    const int granules = (s->k - 1) / granule + 1;
    int count = wanted < granules ? wanted : granules;
    if ((size_t)count > room)
        count = (int)room;
    if (count <= 1) {
        *slices = (od_gemm_slices){1, s->k, call->c, (size_t)s->ldc, 0, call->alpha, call->beta, NULL};
        return OD_OK;
    }
    const int slice_k = ((granules - 1) / count + 1) * granule;
    count = (s->k - 1) / slice_k + 1;
    od_span parts;
    od_status status = od_span_borrow(device, (size_t)count * elements, &parts);
    if (status == OD_OK)
        *slices = (od_gemm_slices){count, slice_k, parts, (size_t)s->n, elements, 1.0f, 0.0f, parts.buffer};
    return status;
}

od_status od_gemm_tuned(od_device *device, const od_tuning_table *table, const od_gemm_shape *shape,
                        const int *defaults, od_gemm_build build, int *v, od_kernel **kernel) {
    char class[64];
    od_status status;
    bool tuned;
    od_gemm_class(class, shape);
    do {
        memcpy(v, defaults, (size_t)table->count * sizeof *v);
        tuned = od_tuning_lookup(device, table, class, v);
        status = build(device, shape, v, kernel);
    } while (tuned && (status == OD_ERR_BUILD || !*kernel) && od_tuning_reject(device, table, class));
    return status;
}

od_status od_gemm_slices_end(od_device *device, const od_gemm_call *call, od_gemm_slices *slices, od_status status) {
    if (!slices->parts)
        return status;
    const od_gemm_shape *s = &call->shape;
    od_kernel *kernel;
    if (!status)
        status = od_kernel_get(device, "gemm_ref", "", "gemm_sum_slices", &kernel);
    const double elements = (double)s->m * s->n, moved = slices->count + (call->beta == 0.0f ? 1 : 2);
    const od_range range =
        od_range_work(OD_RANGE2(s->n, s->m, 0, 0), slices->count * elements, sizeof(float) * moved * elements);
    if (status == OD_OK)
        status = OD_LAUNCH(kernel, range, OD_SPAN(call->c), OD_SPAN(slices->out), OD_I32(slices->count), OD_I32(s->m),
                           OD_I32(s->n), OD_U64(s->ldc), OD_F32(call->alpha), OD_F32(call->beta));
    od_buffer_release(slices->parts);
    slices->parts = NULL;
    return status;
}
