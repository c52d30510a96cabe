/* Device specifications over made-up lists: no OpenCL here. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "offdiag/device.h"

#define CONTAINS(text, part) cr_assert(strstr((text), (part)) != NULL, "expected '%s' in: %s", (part), (text))
#define LENGTH(array)        (sizeof(array) / sizeof *(array))

static od_device_info make(int p, int d, const char *name, const char *platform, od_device_type type, bool unified) {
    od_device_info info = {
        .platform_index = p, .device_index = d, .type = type, .unified_memory = unified, .usable = true};
    (void)snprintf(info.id, sizeof info.id, "%d:%d", p, d);
    (void)snprintf(info.name, sizeof info.name, "%s", name);
    (void)snprintf(info.platform, sizeof info.platform, "%s", platform);
    return info;
}

enum { BROKEN, CPU, IGPU, DGPU, DGPU2, FPGA, DEVICES };
static od_device_info all[DEVICES];

static void fill(void) {
    (void)unsetenv("OFFDIAG_DEVICE");
    all[BROKEN] = make(0, 0, "Radeon RX 580", "Clover", OD_DEVICE_GPU, false);
    all[BROKEN].usable = false;
    (void)snprintf(all[BROKEN].note, sizeof all[BROKEN].note, "unmaintained");
    all[CPU] = make(1, 0, "pthread-EPYC", "Portable Computing Language", OD_DEVICE_CPU, true);
    all[IGPU] = make(3, 0, "Intel UHD 770", "Intel OpenCL Graphics", OD_DEVICE_GPU, true);
    all[DGPU] = make(4, 0, "GeForce RTX", "NVIDIA CUDA", OD_DEVICE_GPU, false);
    all[DGPU2] = make(4, 1, "GeForce RTX Ti", "NVIDIA CUDA", OD_DEVICE_GPU, false);
    all[FPGA] = make(5, 0, "Stratix", "FPGA SDK", OD_DEVICE_ACCELERATOR, false);
}

static void takes(const od_device_info *list, size_t n, const char *spec, int expected, const char *reason_part) {
    size_t index = 99;
    const char *reason = NULL;
    cr_assert_eq(od_device_select(list, n, spec, &index, &reason), OD_OK, "%s: %s", spec, od_error_message());
    cr_assert_eq(index, (size_t)expected, "%s took %zu", spec ? spec : "NULL", index);
    CONTAINS(reason, reason_part);
}

static void refuses(const od_device_info *list, size_t n, const char *spec, const char *part) {
    size_t index = 99;
    cr_assert_eq(od_device_select(list, n, spec, &index, NULL), OD_ERR_NO_DEVICE, "%s took %zu", spec, index);
    CONTAINS(od_error_message(), part);
}

TestSuite(select, .init = fill);

Test(select, automatic_order) {
    takes(all, DEVICES, "auto", DGPU, "discrete GPU");
    takes(all, 3, "auto", IGPU, "integrated GPU");
    takes(all, 2, "auto", CPU, "CPU");
    takes(all + FPGA, 1, "auto", 0, "accelerator");
    refuses(all, 1, "auto", "no usable device");
    CONTAINS(od_error_message(), "not usable: unmaintained");
}

Test(select, types) {
    takes(all, DEVICES, "gpu", DGPU, "discrete");
    takes(all, 3, "GPU", IGPU, "integrated");
    takes(all, DEVICES, "cpu", CPU, "CPU");
    refuses(all, 2, "gpu", "no usable GPU");
    CONTAINS(od_error_message(), "1:0");
    refuses(all + DGPU, 2, "cpu", "no usable CPU");
}

Test(select, numbers) {
    takes(all, DEVICES, "4:1", DGPU2, "number");
    takes(all, DEVICES, "1:0", CPU, "number");
    refuses(all, DEVICES, "2:0", "no device 2:0");
    CONTAINS(od_error_message(), "GeForce RTX Ti");
    refuses(all, DEVICES, "4:2", "no device 4:2");
    refuses(all, DEVICES, "0:0", "not usable: unmaintained");
    refuses(all, DEVICES, "99999999999999999999:0", "no device");
    refuses(all, DEVICES, "4:", "no usable device's or platform's name");
    refuses(all, DEVICES, "4:1x", "no usable device's or platform's name");
    refuses(all, DEVICES, "-1:0", "no usable device's or platform's name");
}

Test(select, names) {
    takes(all, DEVICES, "epyc", CPU, "named");
    takes(all, DEVICES, "portable comp", CPU, "named");
    takes(all, DEVICES, "rtx ti", DGPU2, "named");
    takes(all, DEVICES, "GeForce RTX", DGPU, "named"); /* a whole name, though part of another */
    refuses(all, DEVICES, "nvidia", "more than one device");
    CONTAINS(od_error_message(), "4:0");
    CONTAINS(od_error_message(), "4:1");
    cr_assert_null(strstr(od_error_message(), "1:0"), "only candidates are listed");
    refuses(all, DEVICES, "radeon", "Radeon RX 580"); /* there, but not usable */
    refuses(all, DEVICES, "voodoo", "'voodoo'");
    all[DGPU2] = all[DGPU];
    refuses(all, DEVICES, "GeForce RTX", "more than one device"); /* two whole names */
}

Test(select, precedence) {
    (void)setenv("OFFDIAG_DEVICE", "cpu", 1);
    takes(all, DEVICES, NULL, CPU, "OFFDIAG_DEVICE");
    takes(all, DEVICES, "", CPU, "OFFDIAG_DEVICE");
    takes(all, DEVICES, "gpu", DGPU, "discrete");
    takes(all, DEVICES, "auto", DGPU, "discrete"); /* a flag, even if it says auto */
    (void)setenv("OFFDIAG_DEVICE", "voodoo", 1);
    refuses(all, DEVICES, NULL, "OFFDIAG_DEVICE=voodoo");
    takes(all, DEVICES, "cpu", CPU, "CPU");
    (void)setenv("OFFDIAG_DEVICE", "", 1);
    takes(all, DEVICES, NULL, DGPU, "discrete");
}

Test(select, nothing_at_all) {
    static const char *const packages[] = {"rocm-opencl-icd",  "mesa-opencl-icd",   "RUSTICL_ENABLE",
                                           "intel-opencl-icd", "nvidia-opencl-icd", "pocl-opencl-icd"};
    refuses(NULL, 0, "auto", "no OpenCL device");
    for (size_t i = 0; i < LENGTH(packages); i++)
        CONTAINS(od_error_message(), packages[i]);
    refuses(NULL, 0, "0:0", "no OpenCL device");
}

Test(select, long_text_is_cut) {
    char spec[2000];
    memset(spec, 'x', sizeof spec - 1);
    spec[sizeof spec - 1] = '\0';
    refuses(all, DEVICES, spec, "xxx");
    (void)setenv("OFFDIAG_DEVICE", spec, 1);
    refuses(all, DEVICES, NULL, "OFFDIAG_DEVICE=xxx");
}
