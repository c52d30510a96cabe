/* Matrix product through CLBlast, where it was built in and passed its check on this device: it has given wrong results
 * from contributed tuning data before. */
#include "od_config.h"
#include "ops/gemm_impl.h"
#include "ops/tunable.h"

/* CLBlast's own parameters, which are one set for a device. It wants all of them: what a row leaves out comes from a
 * table of starting values. Without a row its own database counts. */
enum { MWG, NWG, KWG, MDIMC, NDIMC, MDIMA, NDIMB, KWI, VWM, VWN, STRM, STRN, SA, SB, GEMMK, KREG };
enum { WGD, MDIMCD, NDIMCD, MDIMAD, NDIMBD, KWID, VWMD, VWND, PADA, PADB };

/* What CLBlast's tuner demands of Xgemm's parameters (GEMMK 0). */
static bool gemm_fits(const od_device *device, const int *v) {
    const od_device_info *info = od_device_get_info(device);
    const int items = v[MDIMC] * v[NDIMC], local = 4 * v[KWG] * (v[SA] * v[MWG] + v[SB] * v[NWG]);
    return v[KWG] % v[KWI] == 0 && v[MWG] % (v[MDIMC] * v[VWM]) == 0 && v[NWG] % (v[NDIMC] * v[VWN]) == 0 &&
           v[MWG] % (v[MDIMA] * v[VWM]) == 0 && v[NWG] % (v[NDIMB] * v[VWN]) == 0 && items % v[MDIMA] == 0 &&
           items % v[NDIMB] == 0 && v[KWG] % (items / v[MDIMA]) == 0 && v[KWG] % (items / v[NDIMB]) == 0 &&
           (v[SA] || v[MDIMA] == v[MDIMC]) && (v[SB] || v[NDIMB] == v[NDIMC]) &&
           (size_t)items <= info->max_work_group && items <= 256 && (uint64_t)local <= info->local_bytes &&
           local <= 32768;
}

static bool direct_fits(const od_device *device, const int *v) {
    const od_device_info *info = od_device_get_info(device);
    const int items = v[MDIMCD] * v[NDIMCD], local = 4 * v[WGD] * (2 * v[WGD] + v[PADA] + v[PADB]);
    return v[WGD] % v[KWID] == 0 && v[WGD] % (v[MDIMCD] * v[VWMD]) == 0 && v[WGD] % (v[NDIMCD] * v[VWND]) == 0 &&
           v[WGD] % (v[MDIMAD] * v[VWMD]) == 0 && v[WGD] % (v[NDIMBD] * v[VWND]) == 0 && items % v[MDIMAD] == 0 &&
           items % v[NDIMBD] == 0 && v[WGD] % (items / v[MDIMAD]) == 0 && v[WGD] % (items / v[NDIMBD]) == 0 &&
           (size_t)items <= info->max_work_group && items <= 256 && (uint64_t)local <= info->local_bytes &&
           local <= 32768;
}

#define OWN     "CLBlast's database"
#define CLASSES "all: CLBlast knows one set for a device"
const od_tuning_table od_clblast_gemm_table = {
    .variant = "clblast_xgemm",
    .shape = CLASSES,
    .parameters = {{"MWG", OD_TUNING_VALUES(16, 32, 64, 128), OWN},
                   {"NWG", OD_TUNING_VALUES(16, 32, 64, 128), OWN},
                   {"KWG", OD_TUNING_VALUES(16, 32), OWN},
                   {"MDIMC", OD_TUNING_VALUES(8, 16, 32), OWN},
                   {"NDIMC", OD_TUNING_VALUES(8, 16, 32), OWN},
                   {"MDIMA", OD_TUNING_VALUES(8, 16, 32), OWN},
                   {"NDIMB", OD_TUNING_VALUES(8, 16, 32), OWN},
                   {"KWI", OD_TUNING_VALUES(2, 8), OWN},
                   {"VWM", OD_TUNING_VALUES(1, 2, 4, 8), OWN},
                   {"VWN", OD_TUNING_VALUES(1, 2, 4, 8), OWN},
                   {"STRM", OD_TUNING_VALUES(0, 1), OWN},
                   {"STRN", OD_TUNING_VALUES(0, 1), OWN},
                   {"SA", OD_TUNING_VALUES(0, 1), OWN},
                   {"SB", OD_TUNING_VALUES(0, 1), OWN},
                   {"GEMMK", OD_TUNING_VALUES(0), OWN},
                   {"KREG", OD_TUNING_VALUES(1), OWN}},
    .count = 16,
    .fits = gemm_fits,
    .costly = true,
};
const od_tuning_table od_clblast_direct_table = {
    .variant = "clblast_xgemm_direct",
    .shape = CLASSES,
    .parameters = {{"WGD", OD_TUNING_VALUES(8, 16, 32, 64), OWN},
                   {"MDIMCD", OD_TUNING_VALUES(8, 16, 32), OWN},
                   {"NDIMCD", OD_TUNING_VALUES(8, 16, 32), OWN},
                   {"MDIMAD", OD_TUNING_VALUES(8, 16, 32), OWN},
                   {"NDIMBD", OD_TUNING_VALUES(8, 16, 32), OWN},
                   {"KWID", OD_TUNING_VALUES(2, 8, 16), OWN},
                   {"VWMD", OD_TUNING_VALUES(1, 2, 4, 8), OWN},
                   {"VWND", OD_TUNING_VALUES(1, 2, 4, 8), OWN},
                   {"PADA", OD_TUNING_VALUES(0, 1), OWN},
                   {"PADB", OD_TUNING_VALUES(0, 1), OWN}},
    .count = 10,
    .fits = direct_fits,
    .costly = true,
};
const od_tuning_table od_clblast_routine_table = {
    .variant = "clblast_routine",
    .shape = CLASSES,
    .parameters = {{"XGEMM_MIN_INDIRECT_SIZE", OD_TUNING_VALUES(64, 128, 192, 256, 384, 448, 512, 768, 1024, 1536),
                    OWN}},
    .count = 1,
    .costly = true,
};

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
#include "device/plan.h"

/* ---- parameters from tuning rows --------------------------------------------------------------------------------- */

/* In the order of the enums above; tried on no device in particular. */
static const int gemm_start[] = {64, 64, 32, 16, 16, 16, 16, 2, 4, 4, 0, 0, 1, 1, 0, 1};
static const int direct_start[] = {32, 8, 8, 8, 8, 2, 2, 2, 1, 1};
static const int routine_start[] = {448};

static const struct {
    const od_tuning_table *table;
    const char *kernel;
    const int *start;
} kernels[] = {
    {&od_clblast_gemm_table, "Xgemm", gemm_start},
    {&od_clblast_direct_table, "XgemmDirect", direct_start},
    {&od_clblast_routine_table, "GemmRoutine", routine_start},
};
enum { KERNELS = sizeof kernels / sizeof kernels[0] };

/* What this process told CLBlast about a device; there is no way back to its own database. */
typedef struct override {
    struct override *next;
    void *device;
    bool done[KERNELS];
    int values[KERNELS][OD_TUNING_PARAMETERS];
} override;
static override *overrides;
static pthread_mutex_t overrides_mutex = PTHREAD_MUTEX_INITIALIZER;

/* With the mutex held. */
static override *find_override(void *device) {
    override *o = overrides;
    while (o && o->device != device)
        o = o->next;
    if (!o && (o = calloc(1, sizeof *o))) {
        o->device = device;
        o->next = overrides;
        overrides = o;
    }
    return o;
}

static od_status override_kernel(od_device *device, size_t kernel, const int *values) {
    const od_tuning_table *t = kernels[kernel].table;
    const char *names[OD_TUNING_PARAMETERS];
    size_t sizes[OD_TUNING_PARAMETERS];
    for (int i = 0; i < t->count; i++) {
        names[i] = t->parameters[i].name;
        sizes[i] = (size_t)values[i];
    }
    const CLBlastStatusCode code = CLBlastOverrideParameters(od_native_device(device), kernels[kernel].kernel,
                                                             CLBlastPrecisionSingle, (size_t)t->count, names, sizes);
    return code == CLBlastSuccess ? OD_OK
                                  : od_fail(OD_ERR_BUILD, "CLBlast takes no parameters for %s: status %d",
                                            kernels[kernel].kernel, (int)code);
}

/* Hand what the rows say over to CLBlast, where it is not what it has already. */
static od_status apply_rows_locked(od_device *device) {
    override *o = find_override(od_native_device(device));
    for (size_t k = 0; o && k < KERNELS; k++) {
        const od_tuning_table *t = kernels[k].table;
        const size_t bytes = (size_t)t->count * sizeof(int);
        int values[OD_TUNING_PARAMETERS];
        memcpy(values, kernels[k].start, bytes);
        if (!od_tuning_lookup(device, t, "all", values) || (o->done[k] && memcmp(values, o->values[k], bytes) == 0))
            continue;
        od_status status = override_kernel(device, k, values);
        if (status && !od_tuning_reject(device, t, "all"))
            return status;
        o->done[k] = !status;
        memcpy(o->values[k], values, bytes);
    }
    return OD_OK;
}

/* Several open devices may be one to CLBlast. */
static od_status apply_rows(od_device *device) {
    pthread_mutex_lock(&overrides_mutex);
    od_status status = apply_rows_locked(device);
    pthread_mutex_unlock(&overrides_mutex);
    return status;
}

/* ---- the product ------------------------------------------------------------------------------------------------- */

od_status od_gemm_clblast(od_device *device, const od_gemm_call *call) {
    const od_gemm_shape *s = &call->shape;
    od_status status = apply_rows(device);
    if (status)
        return status;
    cl_command_queue queue = od_native_queue(device);
    const CLBlastStatusCode code =
        CLBlastSgemm(CLBlastLayoutRowMajor, s->trans_a ? CLBlastTransposeYes : CLBlastTransposeNo,
                     s->trans_b ? CLBlastTransposeYes : CLBlastTransposeNo, (size_t)s->m, (size_t)s->n, (size_t)s->k,
                     call->alpha, od_native_buffer(call->a.buffer), call->a.offset, (size_t)s->lda,
                     od_native_buffer(call->b.buffer), call->b.offset, (size_t)s->ldb, call->beta,
                     od_native_buffer(call->c.buffer), call->c.offset, (size_t)s->ldc, &queue, NULL);
    if (code != CLBlastSuccess)
        return od_fail(code == CLBlastOpenCLBuildProgramFailure ? OD_ERR_BUILD : OD_ERR_DEVICE,
                       "CLBlast: sgemm m %d, n %d, k %d failed with status %d on %s", s->m, s->n, s->k, (int)code,
                       od_device_get_info(device)->name);
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
    if (od_device_is_plan(device))
        snprintf(r->refusal, sizeof r->refusal, "the device is only described");
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0] && !r->refusal[0]; i++) {
        double error = INFINITY;
        if (product_error(device, shapes[i], &error) != OD_OK)
            snprintf(r->refusal, sizeof r->refusal, "its check failed: %.120s", od_error_message());
        else if (!(error < 1e-5))
            snprintf(r->refusal, sizeof r->refusal, "wrong results in its check (relative error %.1e)", error);
    }
    if (r->refusal[0] && !od_device_is_plan(device))
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
