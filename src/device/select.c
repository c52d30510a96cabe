/* From a device specification to one device of a list; no OpenCL here. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/text.h"
#include "offdiag/device.h"

static const char no_platform[] =
    "no OpenCL device. Install the driver of your hardware:\n"
    "  AMD GPU:    rocm-opencl-icd, or mesa-opencl-icd with RUSTICL_ENABLE=radeonsi\n"
    "  Intel GPU:  intel-opencl-icd, or mesa-opencl-icd with RUSTICL_ENABLE=iris\n"
    "  NVIDIA GPU: nvidia-opencl-icd\n"
    "  any CPU:    pocl-opencl-icd\n"
    "`clinfo -l` shows what is found; OFFDIAG_LOG=info shows which platforms were skipped and why";

/* What auto prefers, best first. */
static const struct {
    const char *reason;
    od_device_type type;
    int unified; /* -1: either */
} preference[] = {
    {"the first discrete GPU", OD_DEVICE_GPU, 0},
    {"the first integrated GPU, as there is no discrete one", OD_DEVICE_GPU, 1},
    {"the first CPU, as there is no GPU", OD_DEVICE_CPU, -1},
    {"the first accelerator, as there is neither GPU nor CPU", OD_DEVICE_ACCELERATOR, -1},
};
enum { PREFERENCES = sizeof preference / sizeof *preference };

/* The candidates as lines for a message; only those that `keep` marks, where it is not NULL. */
static void list_candidates(char *to, size_t size, const od_device_info *infos, size_t count, const bool *keep) {
    size_t used = 0;
    to[0] = '\0';
    for (size_t i = 0; i < count && used < size; i++)
        if (!keep || keep[i])
            used += (size_t)snprintf(to + used, size - used, "\n  %-5s %s (%s)%s%s", infos[i].id, infos[i].name,
                                     infos[i].platform,
                                     infos[i].usable ? "" : ", not usable: ", infos[i].usable ? "" : infos[i].note);
}

static od_status fail_with(const od_device_info *infos, size_t count, const bool *keep, const char *what) {
    char lines[4096];
    list_candidates(lines, sizeof lines, infos, count, keep);
    return od_fail(OD_ERR_NO_DEVICE, "%s%s", what, lines);
}

/* The best usable device of one type (or of any: all = true). */
static bool select_preferred(const od_device_info *infos, size_t count, bool all, od_device_type type, size_t *index,
                             const char **reason) {
    for (size_t p = 0; p < PREFERENCES; p++)
        for (size_t i = 0; (all || preference[p].type == type) && i < count; i++)
            if (infos[i].usable && infos[i].type == preference[p].type &&
                (preference[p].unified < 0 || preference[p].unified == infos[i].unified_memory)) {
                *index = i;
                *reason = preference[p].reason;
                return true;
            }
    return false;
}

/* "P:D" and nothing else. */
static bool parse_place(const char *spec, long *p, long *d) {
    char *end;
    if (!isdigit((unsigned char)spec[0]))
        return false;
    *p = strtol(spec, &end, 10);
    if (*end != ':' || !isdigit((unsigned char)end[1]))
        return false;
    *d = strtol(end + 1, &end, 10);
    return *end == '\0';
}

static od_status select_place(const od_device_info *infos, size_t count, const char *spec, long p, long d,
                              size_t *index) {
    char what[512];
    for (size_t i = 0; i < count; i++) {
        if (infos[i].platform_index != p || infos[i].device_index != d)
            continue;
        if (!infos[i].usable)
            return od_fail(OD_ERR_NO_DEVICE, "device %s (%s) is not usable: %s", infos[i].id, infos[i].name,
                           infos[i].note);
        *index = i;
        return OD_OK;
    }
    (void)snprintf(what, sizeof what, "there is no device %.64s; there are:", spec);
    return fail_with(infos, count, NULL, what);
}

/* A part of the device's or the platform's name. Usable devices only; a whole name wins over parts of others. */
static od_status select_name(const od_device_info *infos, size_t count, const char *spec, size_t *index) {
    od_status status = OD_OK;
    char what[512];
    size_t parts = 0, wholes = 0, part = 0, whole = 0;
    bool *keep = calloc(count, sizeof *keep);
    if (!keep)
        return od_fail(OD_ERR_MEMORY, "no memory to choose among %zu devices", count);
    for (size_t i = 0; i < count; i++) {
        if (!infos[i].usable)
            continue;
        if (strcasecmp(infos[i].name, spec) == 0) {
            wholes++;
            whole = i;
        }
        keep[i] = od_contains_nocase(infos[i].name, spec) || od_contains_nocase(infos[i].platform, spec);
        if (keep[i]) {
            parts++;
            part = i;
        }
    }
    if (wholes == 1 || parts == 1)
        *index = wholes == 1 ? whole : part;
    else if (parts > 1) {
        (void)snprintf(what, sizeof what, "'%.200s' means more than one device; say which by its number:", spec);
        status = fail_with(infos, count, keep, what);
    } else {
        (void)snprintf(
            what, sizeof what,
            "no usable device's or platform's name contains '%.200s' (or say auto, gpu, cpu or P:D); there are:", spec);
        status = fail_with(infos, count, NULL, what);
    }
    free(keep);
    return status;
}

static od_status select_spec(const od_device_info *infos, size_t count, const char *spec, size_t *index,
                             const char **reason) {
    char what[512];
    long p, d;
    bool is_auto = strcasecmp(spec, "auto") == 0, is_gpu = strcasecmp(spec, "gpu") == 0;
    if (count == 0)
        return od_fail(OD_ERR_NO_DEVICE, "%s", no_platform);
    if (is_auto || is_gpu || strcasecmp(spec, "cpu") == 0) {
        if (select_preferred(infos, count, is_auto, is_gpu ? OD_DEVICE_GPU : OD_DEVICE_CPU, index, reason))
            return OD_OK;
        (void)snprintf(what, sizeof what, "there is no usable %s; there are:",
                       is_auto  ? "device"
                       : is_gpu ? "GPU"
                                : "CPU");
        return fail_with(infos, count, NULL, what);
    }
    if (parse_place(spec, &p, &d)) {
        *reason = "named by its number";
        return select_place(infos, count, spec, p, d, index);
    }
    *reason = "named";
    return select_name(infos, count, spec, index);
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

enum { SPEC_MAX = 256, MANY_DEVICES = 256 };

/* What is being put together. */
typedef struct selection {
    const od_device_info *infos;
    size_t count;
    size_t *indices, capacity, used;
    bool *by_number; /* (capacity) */
} selection;

static od_status add(selection *s, size_t index, bool by_number) {
    const od_device_info *info = &s->infos[index];
    for (size_t i = 0; i < s->used; i++)
        if (s->indices[i] == index && !(by_number && s->by_number[i]))
            return od_fail(OD_ERR_USAGE, "device %s (%s) is named twice; to use it twice say %s,%s", info->id,
                           info->name, info->id, info->id);
    if (s->used == s->capacity)
        return od_fail(OD_ERR_USAGE, "more than %zu devices are named", s->capacity);
    s->by_number[s->used] = by_number;
    s->indices[s->used++] = index;
    return OD_OK;
}

/* Whether another platform's entry for the same hardware is taken in place of this one. */
static bool is_second(const od_device_info *infos, size_t count, size_t index) {
    const od_device_info *own = &infos[index];
    for (size_t i = 0; own->physical[0] && i < count; i++)
        if (infos[i].usable && infos[i].platform_index != own->platform_index &&
            strcmp(infos[i].physical, own->physical) == 0 &&
            (infos[i].vector_width > own->vector_width ||
             (infos[i].vector_width == own->vector_width && infos[i].platform_index < own->platform_index)))
            return true;
    return false;
}

static od_status add_every(selection *s, bool gpus) {
    od_status status = OD_OK;
    for (size_t i = 0; i < s->count && !status; i++)
        if (s->infos[i].usable && (!gpus || s->infos[i].type == OD_DEVICE_GPU) && !is_second(s->infos, s->count, i))
            status = add(s, i, false);
    if (status || s->used)
        return status;
    if (s->count == 0)
        return od_fail(OD_ERR_NO_DEVICE, "%s", no_platform);
    return fail_with(s->infos, s->count, NULL,
                     gpus ? "there is no usable GPU; there are:" : "there is no usable device; there are:");
}

/* "A,B,...", with blanks around them. */
static od_status add_named(selection *s, const char *spec, const char **reason) {
    od_status status = OD_OK;
    for (const char *at = spec; at && !status; at = *at ? at + 1 : NULL) {
        char item[SPEC_MAX];
        long p, d;
        size_t length = strcspn(at, ","), index = 0;
        const char *begin = at;
        at += length;
        for (; length > 0 && *begin == ' '; begin++)
            length--;
        while (length > 0 && begin[length - 1] == ' ')
            length--;
        if (length == 0 || length >= sizeof item)
            return od_fail(OD_ERR_USAGE, "'%.200s' has %s name in its list of devices", spec,
                           length ? "too long a" : "an empty");
        (void)snprintf(item, sizeof item, "%.*s", (int)length, begin);
        if (strcasecmp(item, "all") == 0 || strcasecmp(item, "gpus") == 0)
            return od_fail(OD_ERR_USAGE, "'%.200s': \"%s\" stands alone, not in a list of devices", spec, item);
        if (!(status = select_spec(s->infos, s->count, item, &index, reason)))
            status = add(s, index, parse_place(item, &p, &d));
    }
    return status;
}

static od_status select_list(selection *s, const char *spec, const char **reason) {
    size_t index = 0;
    const bool all = strcasecmp(spec, "all") == 0, gpus = strcasecmp(spec, "gpus") == 0;
    if (all || gpus) {
        *reason = all ? "all usable devices" : "all usable GPUs";
        return add_every(s, gpus);
    }
    if (!strchr(spec, ',') || !select_spec(s->infos, s->count, spec, &index, reason)) { /* names may hold commas */
        od_status status = select_spec(s->infos, s->count, spec, &index, reason);
        return status ? status : add(s, index, false);
    }
    od_status status = add_named(s, spec, reason);
    if (s->used > 1)
        *reason = "named in a list";
    return status;
}

od_status od_devices_select(const od_device_info *infos, size_t count, const char *spec, size_t *indices,
                            size_t capacity, size_t *selected, const char **reason) {
    static _Thread_local char words[128];
    const char *why = "", *variable = getenv("OFFDIAG_DEVICE");
    const bool from_variable = (!spec || !*spec) && variable && *variable;
    *selected = 0;
    if (!spec || !*spec)
        spec = from_variable ? variable : "auto";
    selection s = {infos, count, indices, capacity, 0, calloc(capacity + 1, sizeof *s.by_number)};
    if (!s.by_number)
        return od_fail(OD_ERR_MEMORY, "no memory to choose among %zu devices", count);
    od_status status = select_list(&s, spec, &why);
    free(s.by_number);
    if (status && from_variable && count > 0)
        return od_fail_in(status, "OFFDIAG_DEVICE=%.200s: ", variable);
    (void)snprintf(words, sizeof words, "%s%s", why, from_variable ? " (OFFDIAG_DEVICE)" : "");
    if (!status) {
        *selected = s.used;
        if (reason)
            *reason = words;
    }
    return status;
}

od_status od_device_select(const od_device_info *infos, size_t count, const char *spec, size_t *index,
                           const char **reason) {
    size_t indices[MANY_DEVICES], selected = 0;
    od_status status = od_devices_select(infos, count, spec, indices, MANY_DEVICES, &selected, reason);
    if (status)
        return status;
    if (selected > 1) {
        const char *variable = getenv("OFFDIAG_DEVICE");
        const bool given = spec && *spec;
        return od_fail(OD_ERR_USAGE, "%s%.200s names %zu devices, and one is used here: name one, such as %s",
                       given ? "" : "OFFDIAG_DEVICE=", given ? spec : variable, selected, infos[indices[0]].id);
    }
    *index = indices[0];
    return OD_OK;
}
