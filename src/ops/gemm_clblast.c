/* Matrix product through CLBlast, where it was built in and passed its check on this device: it has given wrong results
 * from contributed tuning data before. */
#include "od_config.h"
#include "ops/gemm_impl.h"

#ifndef OD_HAVE_CLBLAST

void od_gemm_clblast_check(od_device *device) {
    (void)device;
}

const char *od_gemm_clblast_refusal(const od_device *device) {
    (void)device;
    return "built without CLBlast";
}

od_status od_gemm_clblast(od_device *device, const od_gemm_call *call) {
    (void)device;
    (void)call;
    return od_fail(OD_ERR_UNSUPPORTED, "gemm variant clblast: built without CLBlast");
}

#else

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CL_TARGET_OPENCL_VERSION 120
#include <clblast_c.h>

#include "base/log.h"
#include "device/native.h"

od_status od_gemm_clblast(od_device *device, const od_gemm_call *call) {
    const od_gemm_shape *s = &call->shape;
    cl_command_queue queue = od_native_queue(device);
    const CLBlastStatusCode code =
        CLBlastSgemm(CLBlastLayoutRowMajor, s->trans_a ? CLBlastTransposeYes : CLBlastTransposeNo,
                     s->trans_b ? CLBlastTransposeYes : CLBlastTransposeNo, (size_t)s->m, (size_t)s->n, (size_t)s->k,
                     call->alpha, od_native_buffer(call->a.buffer), call->a.offset, (size_t)s->lda,
                     od_native_buffer(call->b.buffer), call->b.offset, (size_t)s->ldb, call->beta,
                     od_native_buffer(call->c.buffer), call->c.offset, (size_t)s->ldc, &queue, NULL);
    if (code != CLBlastSuccess)
        return od_fail(OD_ERR_DEVICE, "CLBlast: sgemm m %d, n %d, k %d failed with status %d on %s", s->m, s->n, s->k,
                       (int)code, od_device_get_info(device)->name);
    od_native_enqueued(device, od_gemm_work(call, 1));
    return OD_OK;
}

/* ---- the check: once for each device of the process -------------------------------------------------------------- */

typedef struct check_result {
    struct check_result *next;
    char device[512], refusal[160]; /* refusal: "" when it passed */
} check_result;
static check_result *results; /* never freed: their strings are handed out */
static pthread_mutex_t results_mutex = PTHREAD_MUTEX_INITIALIZER;

static const check_result *find_result(const od_device *device, char key[512]) {
    const od_device_info *info = od_device_get_info(device);
    snprintf(key, 512, "%s %.200s %.200s", info->id, info->name, info->driver);
    pthread_mutex_lock(&results_mutex);
    const check_result *r = results;
    while (r && strcmp(r->device, key) != 0)
        r = r->next;
    pthread_mutex_unlock(&results_mutex);
    return r;
}

/* *error = ||C - C_ref|| / ||C_ref|| of one product with offsets and NaN in C; infinity if any result is not finite. */
static od_status product_error(od_device *device, od_gemm_shape s, double *error) {
    enum { OFFSET = 3 };
    const size_t na = (size_t)s.m * s.k, nb = (size_t)s.k * s.n, nc = (size_t)s.m * s.n;
    od_span a = {0}, b = {0}, c = {0}, c_ref = {0};
    float *host = malloc((2 * nc > na + nb ? 2 * nc : na + nb) * sizeof *host);
    od_status status = OD_OK;
    if (!host)
        return od_fail(OD_ERR_MEMORY, "gemm: no memory for CLBlast's check");
    for (size_t i = 0; i < na + nb; i++)
        host[i] = (float)((i * 2654435761u >> 7) % 2048) / 1024.0f - 1.0f;
    if (status == OD_OK)
        status = od_span_create(device, na + OFFSET, &a);
    if (status == OD_OK)
        status = od_span_create(device, nb + OFFSET, &b);
    if (status == OD_OK)
        status = od_span_create(device, nc + OFFSET, &c);
    if (status == OD_OK)
        status = od_span_create(device, nc, &c_ref);
    a.offset = b.offset = c.offset = OFFSET;
    if (status == OD_OK)
        status = od_span_write(a, host, na);
    if (status == OD_OK)
        status = od_span_write(b, host + na, nb);
    if (status == OD_OK)
        status = od_buffer_fill(c.buffer, 0, (nc + OFFSET) * sizeof(float), 0x7fc00000u);
    const od_gemm_call call = {s, c, a, b, 1.0f, 0.0f}, ref = {s, c_ref, a, b, 1.0f, 0.0f};
    if (status == OD_OK)
        status = od_gemm_clblast(device, &call);
    if (status == OD_OK)
        status = od_gemm_ref(device, &ref);
    if (status == OD_OK)
        status = od_span_read(c, host, nc);
    if (status == OD_OK)
        status = od_span_read(c_ref, host + nc, nc);
    double difference = 0, norm = 0;
    for (size_t i = 0; status == OD_OK && i < nc; i++) {
        difference += ((double)host[i] - host[nc + i]) * ((double)host[i] - host[nc + i]);
        norm += (double)host[nc + i] * host[nc + i];
    }
    *error = isfinite(difference) ? sqrt(difference / norm) : INFINITY;
    od_buffer_release(a.buffer);
    od_buffer_release(b.buffer);
    od_buffer_release(c.buffer);
    od_buffer_release(c_ref.buffer);
    free(host);
    return status;
}

void od_gemm_clblast_check(od_device *device) {
    /* CLBlast has two kernels, for small and for large products; each form of transposition has its own copy. */
    static const od_gemm_shape shapes[] = {
        {false, false, 61, 53, 77, 77, 53, 53},      {true, false, 61, 53, 77, 61, 53, 53},
        {false, true, 61, 53, 77, 77, 77, 53},       {true, true, 61, 53, 77, 61, 77, 53},
        {false, true, 515, 513, 509, 509, 509, 513},
    };
    char key[512];
    if (find_result(device, key))
        return;
    check_result *r = calloc(1, sizeof *r);
    if (!r)
        return;
    memcpy(r->device, key, sizeof key);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0] && !r->refusal[0]; i++) {
        double error = INFINITY;
        if (product_error(device, shapes[i], &error) != OD_OK)
            snprintf(r->refusal, sizeof r->refusal, "its check failed: %.120s", od_error_message());
        else if (!(error < 1e-5))
            snprintf(r->refusal, sizeof r->refusal, "wrong results in its check (relative error %.1e)", error);
    }
    if (r->refusal[0])
        od_log(OD_LOG_WARN, "CLBlast is not used on %s: %s", od_device_get_info(device)->name, r->refusal);
    pthread_mutex_lock(&results_mutex);
    r->next = results;
    results = r;
    pthread_mutex_unlock(&results_mutex);
}

const char *od_gemm_clblast_refusal(const od_device *device) {
    char key[512];
    const check_result *r = find_result(device, key);
    if (!r)
        return "not checked on this device";
    return r->refusal[0] ? r->refusal : NULL;
}

#endif
