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

/* ---- lists ------------------------------------------------------------------------------------------------------- */

/* expected: indices, ends with -1 */
static void takes_all(size_t n, const char *spec, const int *expected, const char *reason_part) {
    size_t indices[8], selected = 99, i = 0;
    const char *reason = NULL;
    cr_assert_eq(od_devices_select(all, n, spec, indices, LENGTH(indices), &selected, &reason), OD_OK, "%s: %s", spec,
                 od_error_message());
    for (; expected[i] >= 0; i++)
        cr_assert(i < selected && indices[i] == (size_t)expected[i], "%s: device %zu of %zu", spec, i, selected);
    cr_assert_eq(selected, i, "%s took %zu devices", spec, selected);
    CONTAINS(reason, reason_part);
}
#define TAKES(n, spec, reason, ...) takes_all((n), (spec), (const int[]){__VA_ARGS__, -1}, (reason))

static void refuses_all(size_t n, const char *spec, size_t capacity, od_status expected, const char *part) {
    size_t indices[8], selected = 99;
    cr_assert_eq(od_devices_select(all, n, spec, indices, capacity, &selected, NULL), expected, "%s: %s", spec,
                 od_error_message());
    cr_assert_eq(selected, 0);
    CONTAINS(od_error_message(), part);
}

Test(select, lists) {
    TAKES(DEVICES, "4:1,1:0", "list", DGPU2, CPU);
    TAKES(DEVICES, " rtx ti , cpu,3:0", "list", DGPU2, CPU, IGPU);
    TAKES(DEVICES, "4:0,1:0,4:0", "list", DGPU, CPU, DGPU); /* the same one twice, by its number */
    TAKES(DEVICES, "auto", "discrete", DGPU);
    TAKES(DEVICES, "1:0", "number", CPU);
    TAKES(DEVICES, NULL, "discrete", DGPU);
    refuses_all(DEVICES, "cpu,1:0", 8, OD_ERR_USAGE, "device 1:0 (pthread-EPYC) is named twice");
    CONTAINS(od_error_message(), "1:0,1:0");
    refuses_all(DEVICES, "4:0,auto", 8, OD_ERR_USAGE, "named twice");
    refuses_all(DEVICES, "4:0,voodoo", 8, OD_ERR_NO_DEVICE, "'voodoo'");
    refuses_all(DEVICES, "4:0,0:0", 8, OD_ERR_NO_DEVICE, "unmaintained");
    refuses_all(DEVICES, "4:0,", 8, OD_ERR_USAGE, "an empty name");
    refuses_all(DEVICES, ",", 8, OD_ERR_USAGE, "an empty name");
    refuses_all(DEVICES, "4:0,all", 8, OD_ERR_USAGE, "stands alone");
    refuses_all(DEVICES, "1:0,1:0,1:0", 2, OD_ERR_USAGE, "more than 2 devices");
    refuses_all(0, "4:0,4:1", 8, OD_ERR_NO_DEVICE, "no OpenCL device");
    (void)snprintf(all[IGPU].name, sizeof all[IGPU].name, "Radeon (renoir, LLVM 15)");
    TAKES(DEVICES, "renoir, LLVM", "named", IGPU); /* a name with a comma */
    TAKES(DEVICES, "4:0,renoir", "list", DGPU, IGPU);
}

Test(select, every_device) {
    TAKES(DEVICES, "all", "all usable", CPU, IGPU, DGPU, DGPU2, FPGA);
    TAKES(DEVICES, "gpus", "GPUs", IGPU, DGPU, DGPU2);
    refuses_all(2, "gpus", 8, OD_ERR_NO_DEVICE, "no usable GPU");
    CONTAINS(od_error_message(), "1:0");
    refuses_all(1, "all", 8, OD_ERR_NO_DEVICE, "no usable device");
    refuses_all(0, "all", 8, OD_ERR_NO_DEVICE, "no OpenCL device");
    refuses_all(DEVICES, "all", 3, OD_ERR_USAGE, "more than 3 devices");
}

/* The same hardware through two platforms counts once; twice in one platform is what its driver was asked for. */
Test(select, the_same_hardware) {
    (void)snprintf(all[IGPU].physical, sizeof all[IGPU].physical, "pci 0000:03:00.0");
    (void)snprintf(all[DGPU].physical, sizeof all[DGPU].physical, "pci 0000:03:00.0");
    TAKES(DEVICES, "gpus", "GPUs", IGPU, DGPU2);
    all[DGPU].vector_width = 4; /* the better one stays */
    TAKES(DEVICES, "gpus", "GPUs", DGPU, DGPU2);
    all[DGPU].usable = false;
    TAKES(DEVICES, "gpus", "GPUs", IGPU, DGPU2);
    fill();
    all[DGPU].physical[0] = all[DGPU2].physical[0] = 'x';
    TAKES(DEVICES, "gpus", "GPUs", IGPU, DGPU, DGPU2);
    TAKES(DEVICES, "4:0,3:0", "list", DGPU, IGPU); /* what is named is taken */
}

Test(select, one_where_a_list_is_named) {
    size_t index = 99;
    cr_assert_eq(od_device_select(all, DEVICES, "4:0,1:0", &index, NULL), OD_ERR_USAGE);
    CONTAINS(od_error_message(), "4:0,1:0 names 2 devices, and one is used here: name one, such as 4:0");
    cr_assert_eq(od_device_select(all, DEVICES, "all", &index, NULL), OD_ERR_USAGE);
    cr_assert_eq(index, 99);
    takes(all, 2, "all", CPU, "all usable"); /* it is the only one */
    (void)setenv("OFFDIAG_DEVICE", "4:0,1:0", 1);
    cr_assert_eq(od_device_select(all, DEVICES, NULL, &index, NULL), OD_ERR_USAGE);
    CONTAINS(od_error_message(), "OFFDIAG_DEVICE=4:0,1:0 names 2 devices");
    TAKES(DEVICES, NULL, "OFFDIAG_DEVICE", DGPU, CPU);
    (void)setenv("OFFDIAG_DEVICE", "4:0,,1:0", 1);
    refuses_all(DEVICES, NULL, 8, OD_ERR_USAGE, "OFFDIAG_DEVICE=4:0,,1:0: '4:0,,1:0' has an empty name");
}
