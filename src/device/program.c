/* Programs: from the embedded source, or from the binary cache. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/text.h"
#include "device/embedded.h"
#include "device/internal.h"
#include "device/plan.h"

enum { LOG_MAX = 48 * 1024, PROGRAMS_MAX = 256 };

static double now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static char *join(const char *const *pieces) {
    size_t bytes = 0, at = 0;
    for (const char *const *p = pieces; *p; p++)
        bytes += strlen(*p);
    char *text = malloc(bytes + 1);
    for (const char *const *p = pieces; text && *p; p++) {
        size_t n = strlen(*p);
        memcpy(text + at, *p, n);
        at += n;
    }
    if (text)
        text[bytes] = '\0';
    return text;
}

od_status od_program_source(const char *name, char **source) {
    const char *names[PROGRAMS_MAX + 1] = {NULL};
    size_t i = 0;
    for (; od_cl_programs[i].name && strcmp(od_cl_programs[i].name, name) != 0; i++)
        if (i < PROGRAMS_MAX)
            names[i] = od_cl_programs[i].name;
    if (!od_cl_programs[i].name) {
        const char *nearest = od_nearest(name, names);
        return od_fail(OD_ERR_ARGUMENT, "there is no OpenCL program '%s'; the nearest name is '%s'", name,
                       nearest ? nearest : "none");
    }
    *source = join(od_cl_programs[i].text);
    return *source ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for the source of %s.cl", name);
}

od_status od_program_options(const od_device *device, const char *options, char **all) {
    const char *type = device->info.type == OD_DEVICE_CPU ? "-DOD_DEVICE_CPU=1" : "-DOD_DEVICE_GPU=1";
    if (asprintf(all, "-cl-std=CL1.2 -cl-mad-enable -cl-kernel-arg-info %s %s %s", type, device->quirks.options,
                 options) >= 0)
        return OD_OK;
    *all = NULL;
    return od_fail(OD_ERR_MEMORY, "no memory for build options");
}

/* ---- builds ------------------------------------------------------------------------------------------------------ */

/* The compiler's log, at most LOG_MAX bytes, malloc'd; NULL when there is none. */
static char *build_log(const od_device *device, cl_program program) {
    size_t bytes = 0;
    char *text = NULL;
    for (int pass = 0; pass < 2; pass++) { /* first its size */
        if (clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, bytes, text, pass ? NULL : &bytes) ||
            bytes < 2 || (!text && !(text = calloc(1, bytes + 1)))) {
            free(text);
            return NULL;
        }
    }
    if (bytes > LOG_MAX)
        text[LOG_MAX] = '\0';
    return text;
}

static cl_int build(const od_device *device, cl_program program, const char *options) {
    return clBuildProgram(program, 1, &device->id, options, NULL, NULL);
}

static void release(cl_program program) {
    if (program)
        (void)clReleaseProgram(program);
}

static od_status build_source(const od_device *device, const char *name, const char *source, const char *options,
                              cl_program *out) {
    od_status status = OD_OK;
    cl_int error;
    cl_program program = clCreateProgramWithSource(device->context, 1, &source, NULL, &error);
    if (error)
        return od_cl_fail(error, "clCreateProgramWithSource", &device->info, "%s.cl", name);
    error = build(device, program, options);
    char *log = error || od_log_topic_enabled("build") ? build_log(device, program) : NULL;
    if (error == CL_BUILD_PROGRAM_FAILURE || error == CL_INVALID_BUILD_OPTIONS)
        status = od_fail(OD_ERR_BUILD, "%s.cl does not build on %s with options '%s': %s\n%s", name, device->info.name,
                         options, od_cl_error_name(error), log ? log : "(the driver gives no log)");
    else if (error)
        status = od_cl_fail(error, "clBuildProgram", &device->info, "%s.cl with options '%s'", name, options);
    else if (log && strspn(log, " \r\n\t") < strlen(log))
        od_log_topic("build", "%s.cl: %s", name, log);
    free(log);
    if (status)
        release(program);
    else
        *out = program;
    return status;
}

/* NULL: what the cache held is no program for this device. */
static cl_program build_binary(const od_device *device, const char *options, const unsigned char *binary,
                               size_t bytes) {
    cl_int error, binary_error = CL_SUCCESS;
    cl_program program =
        clCreateProgramWithBinary(device->context, 1, &device->id, &bytes, &binary, &binary_error, &error);
    if (!error)
        error = binary_error;
    if (!error)
        error = build(device, program, options);
    if (!error)
        return program;
    od_log_topic("cache", "a binary of %zu bytes is refused: %s", bytes, od_cl_error_name(error));
    release(program);
    return NULL;
}

static void save(od_program *p) {
    size_t bytes = 0;
    cl_int error = clGetProgramInfo(p->program, CL_PROGRAM_BINARY_SIZES, sizeof bytes, &bytes, NULL);
    unsigned char *binary = error || bytes == 0 ? NULL : malloc(bytes);
    if (binary && !(error = clGetProgramInfo(p->program, CL_PROGRAM_BINARIES, sizeof(unsigned char *), &binary, NULL)))
        od_cache_store(p->key, binary, bytes);
    else
        od_log_topic("cache", "%s.cl: the driver gives no binary: %s", p->name, od_cl_error_name(error));
    free(binary);
}

static od_status make_program(od_device *device, od_program *p, bool fresh) {
    od_status status;
    char *source = NULL, *options = NULL;
    unsigned char *binary = NULL;
    size_t bytes = 0;
    bool rejected = false;
    double begin = now();
    if ((status = od_program_source(p->name, &source)) || (status = od_program_options(device, p->options, &options)))
        goto out;
    od_cache_key(p->key, device, source, options);
    if (device->caching && !fresh && (binary = od_cache_load(p->key, &bytes, &rejected))) {
        p->program = build_binary(device, options, binary, bytes);
        rejected = p->program == NULL;
    }
    p->from_cache = p->program != NULL;
    device->stats.rejected += rejected;
    device->stats.cached += p->from_cache;
    if (!p->program) {
        if ((status = build_source(device, p->name, source, options, &p->program)))
            goto out;
        device->stats.built++;
        if (device->caching)
            save(p);
    }
    od_log_topic("build", "%s.cl '%s': %s, %.3f s", p->name, p->options, p->from_cache ? "cached" : "built",
                 now() - begin);
out:
    device->stats.seconds += now() - begin;
    free(binary);
    free(options);
    free(source);
    return status;
}

/* ---- the device's programs --------------------------------------------------------------------------------------- */

static void free_program(od_program *p) {
    release(p->program);
    free(p->name);
    free(p->options);
    free(p);
}

od_status od_program_get(od_device *device, const char *name, const char *options, bool fresh, od_program **out) {
    od_status status = OD_OK;
    *out = NULL;
    for (od_program *p = device->programs; p; p = p->next)
        if (!fresh && strcmp(p->name, name) == 0 && strcmp(p->options, options) == 0) {
            *out = p;
            return OD_OK;
        }
    od_program *p = calloc(1, sizeof *p);
    if (!p)
        return od_fail(OD_ERR_MEMORY, "no memory for program %s", name);
    p->name = strdup(name);
    p->options = strdup(options);
    if (p->name && p->options)
        status = make_program(device, p, fresh);
    else
        status = od_fail(OD_ERR_MEMORY, "no memory for program %s", name);
    if (status) {
        free_program(p);
        return status;
    }
    p->next = device->programs; /* a fresh one hides the one that failed */
    device->programs = p;
    *out = p;
    return OD_OK;
}

void od_programs_release(od_device *device) {
    while (device->programs) {
        od_program *p = device->programs;
        device->programs = p->next;
        free_program(p);
    }
}

od_build_stats od_device_build_stats(const od_device *device) {
    return device->stats;
}
