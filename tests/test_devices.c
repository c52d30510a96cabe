/* `offdiag devices`, and what the command line does with commands and options that are not there. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "run_cli.h"

TestSuite(devices, .init = cli_setup, .fini = cli_teardown);

static json_t *devices_json(void) {
    cli_result r = cli("devices --json");
    cli_expect(&r, 0, "");
    json_t *root = json_loads(r.out, JSON_REJECT_DUPLICATES, NULL);
    cr_assert(json_is_object(root), "one JSON document and nothing else: %s", r.out);
    return root;
}

Test(devices, json_has_the_keys_that_scripts_read) {
    static const char *const texts[] = {"id", "name", "platform", "vendor", "type", "driver", "opencl"},
                             *const numbers[] = {"compute_units", "clock_mhz",    "memory_bytes",  "max_alloc_bytes",
                                                 "local_bytes",   "vector_width", "max_work_group"},
                             *const flags[] = {"auto", "half", "double", "unified_memory", "usable"};
    size_t i, taken = 0;
    json_t *root = devices_json(), *device;
    cr_assert_gt(json_array_size(json_object_get(root, "devices")), 0);
    json_array_foreach(json_object_get(root, "devices"), i, device) {
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++)
            cr_assert(json_is_string(json_object_get(device, texts[k])), "%s", texts[k]);
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            cr_assert(json_is_integer(json_object_get(device, numbers[k])), "%s", numbers[k]);
        for (size_t k = 0; k < sizeof flags / sizeof *flags; k++)
            cr_assert(json_is_boolean(json_object_get(device, flags[k])), "%s", flags[k]);
        taken += json_is_true(json_object_get(device, "auto"));
    }
    cr_assert_eq(taken, 1, "auto takes one device");
    cr_assert(json_is_string(json_object_get(root, "auto_reason")));
}

Test(devices, table_says_what_auto_takes) {
    cli_result r = cli("devices");
    cli_expect(&r, 0, "");
    cr_assert_not_null(strstr(r.out, "auto takes "));
    cr_assert_not_null(strstr(r.out, "largest allocation"));
}

Test(devices, variable_that_matches_nothing) {
    (void)setenv("OFFDIAG_DEVICE", "voodoo", 1);
    cli_result r = cli("devices");
    cli_expect(&r, 1, "OFFDIAG_DEVICE=voodoo");
    r = cli("devices --json"); /* a list is a list */
    cli_expect(&r, 0, "");
}

Test(devices, no_platform_says_what_to_install) {
    (void)setenv("OCL_ICD_VENDORS", in_scratch("none"), 1);
    cli_result r = cli("devices");
    cli_expect(&r, 1,
               "no OpenCL device|rocm-opencl-icd|intel-opencl-icd|nvidia-opencl-icd|pocl-opencl-icd|RUSTICL_ENABLE");
    cr_assert_str_eq(r.out, "");
    json_t *root = devices_json();
    cr_assert_eq(json_array_size(json_object_get(root, "devices")), 0);
    cr_assert_null(json_object_get(root, "auto_reason"));
}

Test(devices, wrong_usage_is_2_with_the_nearest_name) {
    cli_result r = cli("devises");
    cli_expect(&r, 2, "unknown command 'devises'|'devices'");
    r = cli("devices --jsn");
    cli_expect(&r, 2, "unknown option --jsn|--json");
    r = cli("devices extra");
    cli_expect(&r, 2, "unexpected argument 'extra'");
    r = cli("%s", "");
    cli_expect(&r, 2, "usage: offdiag COMMAND");
    cr_assert_str_eq(r.out, "");
}

Test(devices, help_and_version_go_to_stdout) {
    cli_result r = cli("--help");
    cli_expect(&r, 0, "");
    cr_assert_not_null(strstr(r.out, "devices"));
    r = cli("devices --help");
    cli_expect(&r, 0, "");
    cr_assert_not_null(strstr(r.out, "--json"));
    r = cli("--version");
    cli_expect(&r, 0, "");
    cr_assert_eq(strncmp(r.out, "offdiag ", 8), 0);
}
