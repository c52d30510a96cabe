/* offdiag devices: what there is, and what auto takes. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/log.h"
#include "base/options.h"
#include "cli/cli.h"
#include "offdiag/device.h"

const char *const cli_device_types[] = {
    [OD_DEVICE_CPU] = "cpu", [OD_DEVICE_GPU] = "gpu", [OD_DEVICE_ACCELERATOR] = "accelerator"};

typedef struct choice {
    size_t index; /* of the device that is taken; the list's length where none is */
    const char *reason;
} choice;

static json_t *device_json(const od_device_info *d, bool is_auto) {
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:s, s:i, s:i, s:I, s:I, s:I, s:b, s:I, s:I, "
                     "s:i, s:b, s:b, "
                     "s:b}",
                     "id", d->id, "name", d->name, "platform", d->platform, "vendor", d->vendor, "type",
                     cli_device_types[d->type], "driver", d->driver, "opencl", d->version, "platform_version",
                     d->platform_version, "auto", is_auto, "usable", d->usable, "note", d->note, "compute_units",
                     (int)d->compute_units, "clock_mhz", (int)d->clock_mhz, "memory_bytes", (json_int_t)d->memory_bytes,
                     "max_alloc_bytes", (json_int_t)d->max_alloc_bytes, "local_bytes", (json_int_t)d->local_bytes,
                     "local_is_dedicated", d->local_is_dedicated, "cache_bytes", (json_int_t)d->cache_bytes,
                     "max_work_group", (json_int_t)d->max_work_group, "vector_width", (int)d->vector_width, "half",
                     d->has_half, "double", d->has_double, "unified_memory", d->unified_memory);
}

static od_status print_json(const od_device_info *infos, size_t count, choice automatic) {
    json_t *devices = json_array(), *root = NULL;
    od_status status = OD_OK;
    for (size_t i = 0; i < count && !status; i++)
        if (json_array_append_new(devices, device_json(&infos[i], i == automatic.index)))
            status = od_fail(OD_ERR_DEVICE, "device %s: a name that is not UTF-8", infos[i].id);
    root =
        json_pack("{s:O, s:s*}", "devices", devices, "auto_reason", automatic.index < count ? automatic.reason : NULL);
    if (!status)
        status = root ? od_json_print(root) : od_fail(OD_ERR_MEMORY, "no memory for JSON");
    json_decref(root);
    json_decref(devices);
    return status;
}

static void print_device(const od_device_info *d, bool is_auto) {
    const double mib = 0x1p20;
    printf("%-5s %s%s\n", d->id, d->name, is_auto ? "   <- auto" : "");
    printf("      %s, %s, vendor %s\n", cli_device_types[d->type], d->platform, d->vendor[0] ? d->vendor : "unknown");
    printf("      %s, driver %s\n", d->version, d->driver);
    printf("      %u compute units, %u MHz, vectors of %u floats, work-groups up to %zu\n", d->compute_units,
           d->clock_mhz, d->vector_width, d->max_work_group);
    printf("      memory %.0f MiB%s, largest allocation %.0f MiB, local %" PRIu64 " KiB%s\n",
           (double)d->memory_bytes / mib, d->unified_memory ? " (shared with the host)" : "",
           (double)d->max_alloc_bytes / mib, d->local_bytes / 1024, d->local_is_dedicated ? "" : " (in global memory)");
    printf("      half %s, double %s\n", d->has_half ? "yes" : "no", d->has_double ? "yes" : "no");
    if (d->note[0])
        printf("      %s%s\n", d->usable ? "" : "not usable: ", d->note);
}

static od_status print_table(const od_device_info *infos, size_t count, choice automatic) {
    for (size_t i = 0; i < count; i++)
        print_device(&infos[i], i == automatic.index);
    if (automatic.index == count)
        return od_fail_in(OD_ERR_NO_DEVICE, "auto finds nothing: ");
    printf("\nauto takes %s: %s\n", infos[automatic.index].id, automatic.reason);
    size_t chosen;
    const char *reason;
    const char *variable = getenv("OFFDIAG_DEVICE");
    if (!variable || !*variable)
        return OD_OK;
    od_status status = od_device_select(infos, count, NULL, &chosen, &reason);
    if (!status)
        printf("OFFDIAG_DEVICE=%s takes %s\n", variable, infos[chosen].id);
    return status;
}

od_status cmd_devices(int argc, char **argv) {
    struct flags {
        bool json;
    } flags = {0};
    const od_option rows[] = {OD_OPT_FLAG(struct flags, json, "json", "one JSON document on standard output")};
    const od_options tables[] = {{rows, sizeof rows / sizeof *rows, &flags}};
    od_positionals positionals = {.usage = "[--json]", .about = "The OpenCL devices, and which one `auto` takes."};
    od_device_info *infos = NULL;
    size_t count = 0;
    choice automatic = {0, ""};
    bool help;
    od_status status = od_options_parse(tables, 1, &positionals, argc, argv, &help);
    if (status || help)
        return status;
    od_log_set_default(OD_LOG_INFO); /* which platforms were skipped, and why */
    if ((status = od_device_list(&infos, &count)))
        return status;
    od_status none = od_device_select(infos, count, "auto", &automatic.index, &automatic.reason);
    if (none)
        automatic.index = count;
    if (flags.json)
        status = print_json(infos, count, automatic);
    else
        status = count ? print_table(infos, count, automatic) : none;
    free(infos);
    return status;
}
