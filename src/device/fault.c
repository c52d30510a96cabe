/* Faults on request, for tests of what comes after them: OFFDIAG_FAULT="KIND:DEVICE:N", several with commas. */
#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "device/internal.h"

static const char *const kind_names[OD_FAULT_KINDS] = {"launch", "read", "memory"};

/* "KIND:DEVICE:N" up to `end`, and nothing else. */
static bool parse(const char *text, const char *end, int *kind, uint64_t *device, uint64_t *n) {
    for (*kind = 0; *kind < OD_FAULT_KINDS; ++*kind) {
        const size_t length = strlen(kind_names[*kind]);
        if ((size_t)(end - text) > length && strncmp(text, kind_names[*kind], length) == 0 && text[length] == ':')
            break;
    }
    if (*kind == OD_FAULT_KINDS)
        return false;
    uint64_t *const numbers[] = {device, n};
    for (int i = 0; i < 2; i++) {
        char *rest;
        text = strchr(text, ':') + 1;
        if (!isdigit((unsigned char)*text))
            return false;
        *numbers[i] = strtoull(text, &rest, 10);
        if (i == 0 ? *rest != ':' : rest != end)
            return false;
        text = rest;
    }
    return *n > 0 && *n < UINT64_MAX && *device < UINT64_MAX;
}

od_status od_faults_open(od_faults *faults, unsigned ordinal) {
    const char *variable = getenv("OFFDIAG_FAULT");
    faults->ordinal = ordinal;
    for (const char *at = variable; at && *variable; at = *at ? at + 1 : NULL) {
        const char *end = at + strcspn(at, ",");
        int kind;
        uint64_t device, n;
        if (!parse(at, end, &kind, &device, &n))
            return od_fail(OD_ERR_USAGE,
                           "OFFDIAG_FAULT=%.200s: expected KIND:DEVICE:N (KIND: launch, read or memory; DEVICE: 0 for "
                           "the first that is opened; N from 1), several with commas",
                           variable);
        if (device == ordinal) {
            faults->armed = true;
            faults->asked[kind] = faults->left[kind] = n;
        }
        at = end;
    }
    return OD_OK;
}

void od_faults_close(const od_faults *f) {
    for (int kind = 0; kind < OD_FAULT_KINDS; kind++)
        if (f->asked[kind])
            od_log_topic("fault", "%s:%u: %" PRIu64 " calls", kind_names[kind], f->ordinal,
                         f->asked[kind] - f->left[kind]);
}

cl_int od_fault_count(od_device *device, od_fault_kind kind) {
    od_faults *f = &device->faults;
    if (f->lost)
        return CL_OUT_OF_RESOURCES;
    if (kind == OD_FAULT_KINDS || f->left[kind] == 0 || --f->left[kind] > 0)
        return CL_SUCCESS;
    od_log(OD_LOG_WARN, "OFFDIAG_FAULT: %s of device %s fails now", kind_names[kind], device->info.id);
    if (kind == OD_FAULT_MEMORY)
        return CL_MEM_OBJECT_ALLOCATION_FAILURE;
    f->lost = true;
    return CL_OUT_OF_RESOURCES;
}
