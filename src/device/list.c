/* Which devices there are. A property that a driver does not know keeps its zero. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/log.h"
#include "base/text.h"
#include "device/internal.h"

enum { MOST_PLATFORMS = 64, MOST_DEVICES = 64 };

static bool device_info(cl_device_id device, cl_device_info what, void *value, size_t size) {
    size_t needed = 0;
    if (clGetDeviceInfo(device, what, 0, NULL, &needed) || needed > size)
        return false; /* cut values would be wrong ones */
    return clGetDeviceInfo(device, what, size, value, NULL) == CL_SUCCESS;
}

/* A string of any length, cut to `size`, without blanks around it. */
static void copy_text(char *to, size_t size, const char *from) {
    from += strspn(from, " \t\r\n");
    (void)snprintf(to, size, "%s", from);
    for (size_t n = strlen(to); n > 0 && strchr(" \t\r\n", to[n - 1]); n--)
        to[n - 1] = '\0';
}

static void device_text(cl_device_id device, cl_device_info what, char *to, size_t size) {
    char text[4096] = "";
    if (device_info(device, what, text, sizeof text - 1))
        copy_text(to, size, text);
}

static void platform_text(cl_platform_id platform, cl_platform_info what, char *to, size_t size) {
    char text[4096] = "";
    if (clGetPlatformInfo(platform, what, sizeof text - 1, text, NULL) == CL_SUCCESS)
        copy_text(to, size, text);
}

static bool has_extension(const char *extensions, const char *name) {
    size_t n = strlen(name);
    for (const char *at = strstr(extensions, name); at; at = strstr(at + n, name))
        if ((at == extensions || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0'))
            return true;
    return false;
}

static void describe_limits(cl_device_id device, od_device_info *info) {
    cl_uint number = 0;
    cl_ulong bytes = 0;
    size_t size = 0, sizes[16] = {0};
    cl_bool yes = CL_FALSE;
    if (device_info(device, CL_DEVICE_MAX_COMPUTE_UNITS, &number, sizeof number))
        info->compute_units = number;
    if (device_info(device, CL_DEVICE_MAX_CLOCK_FREQUENCY, &number, sizeof number))
        info->clock_mhz = number;
    if (device_info(device, CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, &number, sizeof number))
        info->vector_width = number;
    if (info->vector_width == 0)
        info->vector_width = 1;
    if (device_info(device, CL_DEVICE_GLOBAL_MEM_SIZE, &bytes, sizeof bytes))
        info->memory_bytes = bytes;
    if (device_info(device, CL_DEVICE_MAX_MEM_ALLOC_SIZE, &bytes, sizeof bytes))
        info->max_alloc_bytes = bytes;
    if (device_info(device, CL_DEVICE_LOCAL_MEM_SIZE, &bytes, sizeof bytes))
        info->local_bytes = bytes;
    if (device_info(device, CL_DEVICE_GLOBAL_MEM_CACHE_SIZE, &bytes, sizeof bytes))
        info->cache_bytes = bytes;
    cl_device_local_mem_type local = CL_GLOBAL;
    if (device_info(device, CL_DEVICE_LOCAL_MEM_TYPE, &local, sizeof local))
        info->local_is_dedicated = local == CL_LOCAL;
    if (device_info(device, CL_DEVICE_MAX_WORK_GROUP_SIZE, &size, sizeof size))
        info->max_work_group = size;
    if (device_info(device, CL_DEVICE_MAX_WORK_ITEM_SIZES, sizes, sizeof sizes))
        for (int i = 0; i < 3; i++)
            info->max_work_item[i] = sizes[i];
    if (device_info(device, CL_DEVICE_HOST_UNIFIED_MEMORY, &yes, sizeof yes))
        info->unified_memory = yes;
}

/* The extensions' numbers, whose headers need not be installed. */
enum { COMPUTE_CAPABILITY_MAJOR_NV = 0x4000, COMPUTE_CAPABILITY_MINOR_NV = 0x4001, IP_VERSION_INTEL = 0x4250 };

static void describe_architecture(cl_device_id device, od_device_info *info) {
    struct utsname host;
    cl_uint major = 0, minor = 0;
    char *to = info->architecture;
    const size_t size = sizeof info->architecture;
    if (info->type == OD_DEVICE_CPU) {
        if (uname(&host) == 0)
            (void)snprintf(to, size, "%.24s float%u", host.machine, info->vector_width);
    } else if (strncmp(info->name, "gfx", 3) == 0) /* AMD's own driver; flags follow a colon */
        (void)snprintf(to, size, "%.*s", (int)strcspn(info->name, ": "), info->name);
    else if (od_contains_nocase(info->vendor, "nvidia") &&
             device_info(device, COMPUTE_CAPABILITY_MAJOR_NV, &major, sizeof major) &&
             device_info(device, COMPUTE_CAPABILITY_MINOR_NV, &minor, sizeof minor))
        (void)snprintf(to, size, "sm_%u%u", major, minor);
    else if (od_contains_nocase(info->vendor, "intel") && device_info(device, IP_VERSION_INTEL, &major, sizeof major))
        (void)snprintf(to, size, "intel %u.%u", major >> 22, (major >> 14) & 255);
}

/* Where on the buses a device sits, of which each vendor tells in its own way. */
static void describe_physical(cl_device_id device, od_device_info *info) {
    enum { PCI_KHR = 0x410F, BUS_NV = 0x4008, SLOT_NV = 0x4009, DOMAIN_NV = 0x400A, TOPOLOGY_AMD = 0x4037 };
    struct { /* cl_device_pci_bus_info_khr */
        cl_uint domain, bus, device, function;
    } pci = {0};
    struct { /* cl_device_topology_amd of type 1, PCI Express */
        cl_uint type;
        unsigned char unused[17], bus, device, function;
    } amd = {0};
    cl_uint slot = 0;
    bool told = false;
    if (info->type == OD_DEVICE_CPU) { /* one for all platforms, however many devices they make of it */
        (void)snprintf(info->physical, sizeof info->physical, "cpu");
        return;
    }
    if (device_info(device, PCI_KHR, &pci, sizeof pci))
        told = true;
    else if (od_contains_nocase(info->vendor, "nvidia") && device_info(device, BUS_NV, &pci.bus, sizeof pci.bus) &&
             device_info(device, SLOT_NV, &slot, sizeof slot)) {
        (void)device_info(device, DOMAIN_NV, &pci.domain, sizeof pci.domain);
        pci.device = slot >> 3;
        pci.function = slot & 7;
        told = true;
    } else if ((od_contains_nocase(info->vendor, "amd") || od_contains_nocase(info->vendor, "advanced micro")) &&
               device_info(device, TOPOLOGY_AMD, &amd, sizeof amd) && amd.type == 1) {
        pci.bus = amd.bus;
        pci.device = amd.device;
        pci.function = amd.function;
        told = true;
    }
    if (told)
        (void)snprintf(info->physical, sizeof info->physical, "pci %04x:%02x:%02x.%x", pci.domain, pci.bus, pci.device,
                       pci.function);
}

static void describe_usable(cl_device_id device, od_device_info *info) {
    cl_bool available = CL_FALSE, compiler = CL_FALSE, little = CL_FALSE;
    bool told = device_info(device, CL_DEVICE_AVAILABLE, &available, sizeof available) &&
                device_info(device, CL_DEVICE_COMPILER_AVAILABLE, &compiler, sizeof compiler) &&
                device_info(device, CL_DEVICE_ENDIAN_LITTLE, &little, sizeof little);
    od_quirks quirks = od_quirks_of(info, info->note, sizeof info->note);
    const char *why = !told                                ? "its driver does not answer"
                      : !available                         ? "not available"
                      : !compiler                          ? "no compiler"
                      : !little                            ? "big-endian"
                      : info->max_work_group == 0          ? "its driver tells no work-group size"
                      : (quirks.flags & OD_QUIRK_UNUSABLE) ? info->note
                                                           : NULL;
    info->usable = why == NULL;
    if (why && why != info->note)
        (void)snprintf(info->note, sizeof info->note, "%s", why);
}

static void describe(cl_platform_id platform, cl_device_id device, int p, int d, od_device_info *info) {
    char extensions[16384] = "";
    cl_device_type type = 0;
    *info = (od_device_info){.platform_index = p, .device_index = d};
    (void)snprintf(info->id, sizeof info->id, "%d:%d", p, d);
    platform_text(platform, CL_PLATFORM_NAME, info->platform, sizeof info->platform);
    platform_text(platform, CL_PLATFORM_VERSION, info->platform_version, sizeof info->platform_version);
    device_text(device, CL_DEVICE_NAME, info->name, sizeof info->name);
    device_text(device, CL_DEVICE_VENDOR, info->vendor, sizeof info->vendor);
    device_text(device, CL_DRIVER_VERSION, info->driver, sizeof info->driver);
    device_text(device, CL_DEVICE_VERSION, info->version, sizeof info->version);
    (void)device_info(device, CL_DEVICE_TYPE, &type, sizeof type);
    info->type = type & CL_DEVICE_TYPE_GPU   ? OD_DEVICE_GPU
                 : type & CL_DEVICE_TYPE_CPU ? OD_DEVICE_CPU
                                             : OD_DEVICE_ACCELERATOR;
    if (device_info(device, CL_DEVICE_EXTENSIONS, extensions, sizeof extensions - 1)) {
        info->has_half = has_extension(extensions, "cl_khr_fp16");
        info->has_double = has_extension(extensions, "cl_khr_fp64");
    }
    describe_limits(device, info);
    describe_architecture(device, info);
    describe_physical(device, info);
    describe_usable(device, info);
}

/* ---- enumeration ------------------------------------------------------------------------------------------------- */

static unsigned get_platforms(cl_platform_id platforms[MOST_PLATFORMS]) {
    cl_uint count = 0;
    cl_int error = clGetPlatformIDs(MOST_PLATFORMS, platforms, &count);
    if (error && error != -1001) /* CL_PLATFORM_NOT_FOUND_KHR */
        od_log(OD_LOG_INFO, "clGetPlatformIDs: %s (%d)", od_cl_error_name(error), (int)error);
    if (error)
        return 0;
    return count < MOST_PLATFORMS ? count : MOST_PLATFORMS;
}

static unsigned get_devices(cl_platform_id platform, int index, cl_device_id devices[MOST_DEVICES]) {
    char name[128] = "?";
    cl_uint count = 0;
    cl_int error = clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, MOST_DEVICES, devices, &count);
    if (error == CL_SUCCESS && count > 0)
        return count < MOST_DEVICES ? count : MOST_DEVICES;
    platform_text(platform, CL_PLATFORM_NAME, name, sizeof name);
    if (error == CL_SUCCESS || error == CL_DEVICE_NOT_FOUND)
        od_log(OD_LOG_INFO, "platform %d (%s) has no devices%s: skipped", index, name,
               strcmp(name, "rusticl") == 0 ? " (RUSTICL_ENABLE names the drivers it may use)" : "");
    else
        od_log(OD_LOG_INFO, "platform %d (%s): %s (%d): skipped", index, name, od_cl_error_name(error), (int)error);
    return 0;
}

od_status od_device_list(od_device_info **infos, size_t *count) {
    cl_platform_id platforms[MOST_PLATFORMS];
    cl_device_id devices[MOST_DEVICES];
    unsigned n = get_platforms(platforms);
    od_device_info *list = NULL;
    size_t used = 0;
    *infos = NULL;
    *count = 0;
    for (unsigned p = 0; p < n; p++) {
        unsigned m = get_devices(platforms[p], (int)p, devices);
        od_device_info *longer = realloc(list, (used + m + 1) * sizeof *list);
        if (!longer) {
            free(list);
            return od_fail(OD_ERR_MEMORY, "no memory for a list of %zu devices", used + m);
        }
        list = longer;
        for (unsigned d = 0; d < m; d++)
            describe(platforms[p], devices[d], (int)p, (int)d, &list[used++]);
    }
    *infos = list;
    *count = used;
    return OD_OK;
}

od_status od_cl_find(int platform_index, int device_index, cl_platform_id *platform, cl_device_id *device) {
    cl_platform_id platforms[MOST_PLATFORMS];
    cl_device_id devices[MOST_DEVICES];
    unsigned n = get_platforms(platforms);
    unsigned m = (unsigned)platform_index < n ? get_devices(platforms[platform_index], platform_index, devices) : 0;
    if ((unsigned)device_index >= m)
        return od_fail(OD_ERR_NO_DEVICE, "device %d:%d is gone", platform_index, device_index);
    *platform = platforms[platform_index];
    *device = devices[device_index];
    return OD_OK;
}
