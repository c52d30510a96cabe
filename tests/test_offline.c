/* offdiag matrix --offline: what compilers say is read right, however broken; nothing that a program could ask for is
 * left out; a planted spill is found; a compiler that is missing is a skip that is told. */
#include <criterion/criterion.h>
#include <elf.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/rng.h"
#include "cli/matrix/offline.h"
#include "device/embedded.h"
#include "device/plan.h"
#include "harness.h"
#include "run_cli.h"

/* ---- what compilers said ----------------------------------------------------------------------------------------- */

/* clang 15, gfx90a; shortened. */
static const char amd_text[] =
    "\t.text\n\t.globl\tconv_gemm\n\t.amdhsa_kernel conv_gemm\n\t\t.amdhsa_group_segment_fixed_size 17408\n"
    "\t.end_amdhsa_kernel\n; Kernel info:\n; NumSgprs: 52\n; NumVgprs: 62\n; ScratchSize: 40\n; Occupancy: 7\n"
    "; Function info:\n; Occupancy: 1\n"
    "\t.amdhsa_kernel conv_gemm_pack\n\t.end_amdhsa_kernel\n; NumVgprs: 10\n; Occupancy: 8\n"
    "\t.amdgpu_metadata\n---\namdhsa.kernels:\n"
    "  - .agpr_count:     0\n    .args:\n      - .address_space:  global\n        .name:           out\n"
    "        .size:           8\n        .vgpr_count:     999\n"
    "    .group_segment_fixed_size: 17408\n    .kernarg_segment_align: 8\n    .max_flat_workgroup_size: 256\n"
    "    .name:           conv_gemm\n    .private_segment_fixed_size: 40\n    .reqd_workgroup_size:\n      - 16\n      "
    "- 16\n"
    "      - 1\n    .sgpr_count:     52\n    .sgpr_spill_count: 3\n    .symbol:         conv_gemm.kd\n"
    "    .uses_dynamic_stack: false\n    .vgpr_count:     62\n    .vgpr_spill_count: 4\n    .wavefront_size: 64\n"
    "  - .agpr_count:     0\n    .group_segment_fixed_size: 0\n    .max_flat_workgroup_size: 256\n"
    "    .name:           conv_gemm_pack\n    .private_segment_fixed_size: 0\n    .sgpr_count:     26\n"
    "    .sgpr_spill_count: 0\n    .vgpr_count:     10\n    .vgpr_spill_count: 0\n    .wavefront_size: 64\n"
    "amdhsa.target:   amdgcn-amd-amdhsa--gfx90a\namdhsa.version:\n  - 1\n  - 1\n...\n\n\t.end_amdgpu_metadata\n";

/* ptxas of CUDA 13 and of CUDA 12.4. */
static const char ptxas_text[] =
    "ptxas info    : 0 bytes gmem\n"
    "ptxas info    : Compiling entry function 'conv_gemm_pack' for 'sm_80'\n"
    "ptxas info    : Function properties for conv_gemm_pack\n"
    "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    "ptxas info    : Used 16 registers, used 0 barriers, 396 bytes cmem[0]\n"
    "ptxas info    : Compile time = 14.008 ms\n"
    "ptxas info    : Compiling entry function 'conv_gemm' for 'sm_80'\n"
    "ptxas info    : Function properties for conv_gemm\n"
    "    120 bytes stack frame, 88 bytes spill stores, 96 bytes spill loads\n"
    "ptxas info    : Used 255 registers, 17408 bytes smem, 444 bytes cmem[0], 16 bytes cmem[2]\n"
    "ptxas info    : Function properties for helper\n"
    "    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n";

/* ocloc 22.43; shortened. */
static const char ze_text[] =
    "---\nversion:         '1.20'\nkernels:\n  - name:            conv_gemm\n    user_attributes:\n"
    "      reqd_work_group_size: [ 16, 16, 1 ]\n    execution_env:\n      barrier_count:   1\n      grf_count:       "
    "128\n"
    "      required_work_group_size: [ 16, 16, 1 ]\n      simd_size:       16\n      slm_size:        17408\n"
    "    payload_arguments:\n      - arg_type:        local_id\n        offset:          0\n        size:            "
    "12\n"
    "    per_thread_memory_buffers:\n      - type:            scratch\n        usage:           single_space\n"
    "        size:            32768\n      - type:            global\n        usage:           private_space\n"
    "        size:            1216\n        is_simt_thread:  true\n"
    "  - name:            conv_gemm_pack\n    execution_env:\n      grf_count:       256\n      simd_size:       32\n"
    "kernels_misc_info:\n  - name:            conv_gemm\n    args_info:\n      - index:           0\n"
    "        name:            out\n...\n";

Test(offline, amd_assembly) {
    od_usage_list list;
    cr_assert_eq(od_parse_amd(amd_text, "gfx90a", &list), OD_OK, "%s", od_error_message());
    cr_assert_eq(list.count, 2);
    const od_usage *u = &list.rows[0];
    cr_assert_str_eq(u->name, "conv_gemm");
    cr_assert(u->registers == 62 && u->scalar_registers == 52 && u->simd == 64 && u->max_group == 256);
    cr_assert(u->spill_bytes == 16 && u->stack_bytes == 24 && u->scalar_spills == 3 && u->local_bytes == 17408);
    cr_assert_eq(u->waves, 7, "not that of a function: %ld", u->waves);
    cr_assert_str_eq(list.rows[1].name, "conv_gemm_pack");
    cr_assert(list.rows[1].registers == 10 && list.rows[1].spill_bytes == 0 && list.rows[1].waves == 8);
    free(list.rows);
}

Test(offline, ptxas_notes) {
    od_usage_list list;
    cr_assert_eq(od_parse_ptxas(ptxas_text, "sm_80", &list), OD_OK, "%s", od_error_message());
    cr_assert_eq(list.count, 2);
    cr_assert(list.rows[0].registers == 16 && list.rows[0].spill_bytes == 0 && list.rows[0].local_bytes == 0);
    const od_usage *u = &list.rows[1];
    cr_assert_str_eq(u->name, "conv_gemm");
    cr_assert(u->registers == 255 && u->spill_bytes == 88 && u->stack_bytes == 120 && u->local_bytes == 17408);
    free(list.rows);
}

Test(offline, zebin_information) {
    od_usage_list list;
    cr_assert_eq(od_parse_ze_info(ze_text, "dg2", &list), OD_OK, "%s", od_error_message());
    cr_assert_eq(list.count, 2);
    const od_usage *u = &list.rows[0];
    cr_assert_str_eq(u->name, "conv_gemm");
    cr_assert(u->registers == 128 && u->simd == 16 && u->local_bytes == 17408);
    cr_assert_eq(u->spill_bytes, 2048, "of a thread's 32768 bytes, each of 16 work-items: %ld", u->spill_bytes);
    cr_assert_eq(u->stack_bytes, 1216, "%ld", u->stack_bytes);
    cr_assert(list.rows[1].registers == 256 && list.rows[1].simd == 32 && list.rows[1].spill_bytes == 0);
    od_occupancy_intel(&list.rows[1], true);
    cr_assert(list.rows[1].waves == 4 && list.rows[1].most_waves == 8, "large register files halve the threads");
    free(list.rows);
}

Test(offline, nvidia_occupancy) {
    static const struct {
        long registers, local, waves;
        int capability;
        size_t group;
    } cases[] = {
        {32, 0, 64, 80, 256},     /* all */
        {64, 0, 32, 80, 256},     /* registers */
        {255, 0, 8, 80, 256},     /* one group */
        {33, 0, 48, 80, 64},      /* 40 registers a lane are given */
        {16, 32768, 32, 80, 256}, /* four groups' local memory of 164 KiB */
        {16, 32768, 24, 70, 256}, /* three of 96 KiB */
        {16, 0, 32, 80, 32},      /* 32 groups at most */
        {255, 0, 0, 80, 512},     /* none */
    };
    for (size_t i = 0; i < OD_COUNT(cases); i++) {
        od_usage u = {.registers = cases[i].registers};
        od_occupancy_nvidia(&u, cases[i].capability, cases[i].group, (uint64_t)cases[i].local);
        cr_assert_eq(u.waves, cases[i].waves, "case %zu: %ld", i, u.waves);
    }
}

/* ---- what they might say ----------------------------------------------------------------------------------------- */

typedef od_status parser(const char *text, const char *origin, od_usage_list *out);
static parser *const parsers[] = {od_parse_amd, od_parse_ptxas, od_parse_ze_info};
static const char *const samples[] = {amd_text, ptxas_text, ze_text};

/* It may be refused or taken; what is taken has its numbers, and the rows are none after a refusal. */
static bool parse_any(size_t p, const char *text) {
    od_usage_list list = {(od_usage *)&list, 7};
    const od_status status = parsers[p](text, "hostile", &list);
    cr_assert(status == OD_OK || status == OD_ERR_FORMAT);
    if (status) {
        cr_assert(!list.rows && list.count == 0);
        cr_assert(strstr(od_error_message(), "hostile"), "%s", od_error_message());
        return false;
    }
    for (size_t i = 0; i < list.count; i++) {
        const od_usage *u = &list.rows[i];
        cr_assert(u->name[0] && memchr(u->name, '\0', sizeof u->name));
        cr_assert(u->registers >= 0 && u->spill_bytes >= 0 && u->local_bytes >= 0);
    }
    free(list.rows);
    return true;
}

Test(offline, truncated_at_every_byte) {
    for (size_t p = 0; p < OD_COUNT(parsers); p++) {
        const size_t whole = strlen(samples[p]);
        for (size_t n = 0; n < whole; n++) {
            char *text = strndup(samples[p], n); /* of its own, so that a sanitizer sees the end */
            parse_any(p, text);
            free(text);
        }
    }
    /* Cut inside the list: what is there must not pass for all. */
    char *text = strndup(amd_text, (size_t)(strstr(amd_text, "amdhsa.target") - amd_text));
    cr_assert(!parse_any(0, text));
    free(text);
    text = strndup(ze_text, (size_t)(strstr(ze_text, "kernels_misc") - ze_text));
    cr_assert(!parse_any(2, text));
    free(text);
}

Test(offline, damaged) {
    for (size_t p = 0; p < OD_COUNT(parsers); p++) {
        const size_t n = strlen(samples[p]);
        for (uint32_t seed = 0; seed < 3000; seed++) {
            char *text = strdup(samples[p]);
            float place[6];
            od_rng_fill_uniform(place, 6, 0, 1, seed, p);
            for (int i = 0; i < 6; i += 2) {
                const size_t at = (size_t)(place[i] * (float)(n - 1));
                text[at] = (char)(1 + (int)(place[i + 1] * 250));
            }
            parse_any(p, text);
            free(text);
        }
    }
}

Test(offline, absurd) {
    static const char *const bad[][3] = {
        /* parser, from, to */
        {"0", ".vgpr_count:     62", ".vgpr_count:     -1"},
        {"0", ".vgpr_count:     62", ".vgpr_count:     99999999999999999999"},
        {"0", ".vgpr_count:     62", ".vgpr_count:     x"},
        {"0", "    .vgpr_spill_count: 4\n", ""},
        {"0", ".name:           conv_gemm\n", ".name:           \n"},
        {"1", "88 bytes spill stores", "many bytes spill stores"},
        {"1", "Used 255 registers", "Used all registers"},
        {"1", "'conv_gemm'", "''"},
        {"2", "grf_count:       128", "grf_count:       no"},
        {"2", "      simd_size:       16\n", ""},
        {"2", "simd_size:       16", "simd_size:       0"},
        {"2", "size:            32768", "size:            -5"},
    };
    for (size_t i = 0; i < OD_COUNT(bad); i++) {
        const size_t p = (size_t)(bad[i][0][0] - '0');
        const char *found = strstr(samples[p], bad[i][1]);
        char text[8192];
        cr_assert(found, "case %zu", i);
        (void)snprintf(text, sizeof text, "%.*s%s%s", (int)(found - samples[p]), samples[p], bad[i][2],
                       found + strlen(bad[i][1]));
        cr_assert(!parse_any(p, text), "case %zu passes", i);
    }
    char *long_name = malloc(100000);
    const int used = snprintf(long_name, 1000, "ptxas info : Compiling entry function '");
    memset(long_name + used, 'a', 99000);
    (void)snprintf(long_name + used + 99000, 100, "' for 'sm_80'\n");
    cr_assert(!parse_any(1, long_name));
    free(long_name);
    cr_assert(!parse_any(1, "ptxas fatal   : Value 'sm_70' is not defined for option 'gpu-name'\n"));
}

/* An ELF file with the text in .ze_info. */
static size_t make_zebin(unsigned char *file, size_t room, const char *text) {
    static const char names[] = "\0.ze_info\0.shstrtab";
    const size_t n = strlen(text), names_at = sizeof(Elf64_Ehdr) + n, table = names_at + sizeof names;
    Elf64_Ehdr header = {.e_shoff = table, .e_shentsize = sizeof(Elf64_Shdr), .e_shnum = 3, .e_shstrndx = 2};
    const Elf64_Shdr sections[3] = {
        {.sh_type = SHT_NULL},
        {.sh_name = 1, .sh_offset = sizeof header, .sh_size = n},
        {.sh_name = 10, .sh_offset = names_at, .sh_size = sizeof names},
    };
    memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    cr_assert(table + sizeof sections <= room);
    memcpy(file, &header, sizeof header);
    (void)snprintf((char *)file + sizeof header, n + 1, "%s", text);
    memcpy(file + names_at, names, sizeof names);
    memcpy(file + table, sections, sizeof sections);
    return table + sizeof sections;
}

Test(offline, zebin_files) {
    unsigned char file[8192];
    const size_t bytes = make_zebin(file, sizeof file, ze_text);
    od_usage_list list;
    cr_assert_eq(od_parse_zebin(file, bytes, "dg2", &list), OD_OK, "%s", od_error_message());
    cr_assert_eq(list.count, 2);
    free(list.rows);
    for (size_t n = 0; n < bytes; n++) {
        unsigned char *cut = malloc(n + 1);
        memcpy(cut, file, n);
        cr_assert_eq(od_parse_zebin(cut, n, "cut", &list), OD_ERR_FORMAT);
        free(cut);
    }
    for (size_t at = 0; at < bytes; at++) /* each byte of headers and tables, and of the text */
        for (int value = 0; value < 3; value++) {
            unsigned char *damaged = malloc(bytes);
            memcpy(damaged, file, bytes);
            damaged[at] = value == 0 ? 0 : value == 1 ? 0xff : (unsigned char)(damaged[at] + 0x80);
            if (od_parse_zebin(damaged, bytes, "damaged", &list) == OD_OK)
                free(list.rows);
            free(damaged);
        }
}

/* ---- judging ----------------------------------------------------------------------------------------------------- */

Test(offline, limits_are_failures_of_defaults_only) {
    static const struct {
        od_usage usage;
        size_t group;
        uint64_t local;
        const char *words; /* "": fine */
    } cases[] = {
        {{.registers = 64, .max_group = -1}, 256, 0, ""},
        {{.registers = 64, .spill_bytes = 4, .max_group = -1}, 256, 0, "4 bytes of registers spilled"},
        {{.registers = 64, .local_bytes = 32768, .max_group = -1}, 256, 0, ""},
        {{.registers = 64, .local_bytes = 32768, .max_group = -1}, 256, 4, "local memory"},
        {{.registers = 64, .local_bytes = 32772, .max_group = -1}, 256, 0, "local memory"},
        {{.registers = 64, .max_group = -1}, 512, 0, "a work-group of 512"},
        {{.registers = 64, .max_group = 128}, 256, 0, "compiled for at most 128"},
        {{.registers = 255, .max_group = -1}, 256, 0, ""},
        {{.registers = 257, .max_group = -1}, 256, 0, "257 registers"},
    };
    const od_target target = {.name = "sm_80", .vendor = OD_NVIDIA};
    for (size_t i = 0; i < OD_COUNT(cases); i++)
        for (int by_default = 0; by_default < 2; by_default++) {
            const od_wanted_kernel kernel = {
                .by_default = by_default, .work_group = cases[i].group, .local_bytes = cases[i].local};
            od_offline_row row = {.target = &target, .kernel = &kernel, .compiled = true, .usage = cases[i].usage};
            od_offline_judge(&row);
            cr_assert_eq(row.failure[0] != '\0', by_default && cases[i].words[0], "case %zu: %s", i, row.failure);
            cr_assert(!by_default || strstr(row.failure, cases[i].words), "case %zu: %s", i, row.failure);
        }
}

/* ---- what is asked for ------------------------------------------------------------------------------------------- */

static bool asked(const od_wanted_list *list, const char *program, const char *kernel) {
    for (size_t i = 0; i < list->count; i++)
        for (size_t k = 0; k < list->programs[i].count; k++)
            if (strcmp(list->programs[i].program, program) == 0 &&
                strcmp(list->programs[i].kernels[k].name, kernel) == 0)
                return true;
    return false;
}

static od_device_info cpu_info(void) {
    od_device_info info = od_target_info(&od_targets[0]);
    info.type = OD_DEVICE_CPU;
    info.vector_width = 16;
    info.local_is_dedicated = false;
    info.max_work_group = 4096;
    (void)snprintf(info.vendor, sizeof info.vendor, "GenuineIntel");
    return info;
}

/* Every kernel of cl/ is asked for by something: one that is not would be left out of the table without a word. */
Test(offline, every_kernel_is_asked_for) {
    const od_device_info infos[] = {od_target_info(&od_targets[0]), cpu_info()};
    od_wanted_list lists[2];
    size_t kernels = 0;
    regex_t kernel;
    regmatch_t found[3];
    cr_assert_eq(regcomp(&kernel, "(__kernel[^;{#]*void|[A-Z]+_KERNEL)[ \n(]+([a-z_0-9]+)[(,]", REG_EXTENDED), 0);
    for (int i = 0; i < 2; i++)
        cr_assert_eq(od_offline_ask(&infos[i], "", &lists[i]), OD_OK, "%s", od_error_message());
    for (const od_cl_program *p = od_cl_programs; p->name; p++) {
        char *source;
        if (strcmp(p->name, "device_check") == 0) /* for tests of the device layer */
            continue;
        cr_assert_eq(od_program_source(p->name, &source), OD_OK);
        for (char *at = source; regexec(&kernel, at, 3, found, 0) == 0; at += found[0].rm_eo) {
            char name[96];
            (void)snprintf(name, sizeof name, "%.*s", (int)(found[2].rm_eo - found[2].rm_so), at + found[2].rm_so);
            if (strcmp(name, "name") == 0) /* a macro that makes kernels */
                continue;
            cr_expect(asked(&lists[0], p->name, name) || asked(&lists[1], p->name, name), "nothing asks for %s.cl: %s",
                      p->name, name);
            kernels++;
        }
        free(source);
    }
    cr_assert_geq(kernels, 65, "kernels are found in the sources: %zu", kernels);
    regfree(&kernel);
    for (int i = 0; i < 2; i++)
        od_wanted_free(&lists[i]);
}

Test(offline, launches_are_remembered) {
    const od_device_info info = od_target_info(&od_targets[0]);
    od_wanted_list list;
    cr_assert_eq(od_offline_ask(&info, "dense", &list), OD_OK, "%s", od_error_message());
    bool gemm = false;
    for (size_t i = 0; i < list.count; i++)
        for (size_t k = 0; k < list.programs[i].count; k++)
            gemm = gemm || (strcmp(list.programs[i].program, "gemm_gpu") == 0 &&
                            list.programs[i].kernels[k].by_default && list.programs[i].kernels[k].work_group >= 64 &&
                            strstr(list.programs[i].all_options, "-cl-std=CL1.2") &&
                            strstr(list.programs[i].all_options, "-DOD_DEVICE_GPU=1"));
    cr_assert(gemm);
    od_wanted_free(&list);
}

/* ---- a compiler run ---------------------------------------------------------------------------------------------- */

TestSuite(offline_tools, .init = cli_setup, .fini = cli_teardown);

Test(offline_tools, how_a_tool_ends) {
    static const struct {
        char *argv[4];
        const char *words, *said;
    } cases[] = {
        {{"sh", "-c", "echo fine", NULL}, NULL, ""},
        {{"sh", "-c", "echo first; echo oops >&2; exit 3", NULL}, "sh failed with code 3", "oops"},
        {{"sh", "-c", "kill -SEGV $$", NULL}, "signal 11", ""},
        {{"sh", "-c", "sleep 60 & sleep 60", NULL}, "longer than", ""},
        {{"no-such-compiler", NULL}, "no-such-compiler", ""},
    };
    for (size_t i = 0; i < OD_COUNT(cases); i++) {
        char said[OD_TOOL_SAID];
        const od_status status = od_tool_run(cases[i].argv, in_scratch("said"), 0.3, said);
        cr_assert_eq(status == OD_OK, cases[i].words == NULL, "case %zu", i);
        cr_assert(!cases[i].words || strstr(od_error_message(), cases[i].words), "%s", od_error_message());
        cr_assert(strstr(said, cases[i].said), "case %zu: %s", i, said);
    }
}

/* 272 numbers that all live at once, of which no target has so many registers. */
static const char *spilling(void) {
    static char text[1024];
    (void)snprintf(
        text, sizeof text,
        "__kernel __attribute__((reqd_work_group_size(64, 1, 1))) void planted(__global float *x, int n) {\n"
        "    float s[272];\n"
        "    __attribute__((opencl_unroll_hint)) for (int i = 0; i < 272; i++) s[i] = x[i * n];\n"
        "    for (int k = 0; k < n; k++) {\n"
        "        float a = x[k];\n"
        "        __attribute__((opencl_unroll_hint)) for (int i = 0; i < 272; i++) s[i] = s[i] * a + x[k + i];\n"
        "    }\n"
        "    __attribute__((opencl_unroll_hint)) for (int i = 0; i < 272; i++) x[i * n] = s[i];\n"
        "}\n");
    return text;
}

static const char plain[] = "__kernel void planted(__global float *x, int n) { x[get_global_id(0)] *= (float)n; }\n";
static const char careless[] = "__kernel void planted(__global float *x) { int unused; x[get_global_id(0)] = 1; }\n";
static const char broken[] = "__kernel void planted(__global float *x) { x[0] = nothing; }\n";

Test(offline_tools, planted_spills_are_found) {
    od_tools tools;
    int ran = 0;
    od_tools_find(&tools, in_scratch("."));
    for (const od_target *t = od_targets; t->name; t++) {
        char why[400], ptxas[256];
        od_usage_list list;
        const od_wanted_kernel kernel = {.name = "planted", .by_default = true, .work_group = 64};
        if (!t->quick)
            continue;
        od_target_missing(&tools, t, in_scratch("."), why, sizeof why, ptxas);
        if (why[0]) {
            cr_log_warn("%s: %s", t->name, why);
            continue;
        }
        ran++;
        for (int spill = 0; spill < 2; spill++) {
            cr_assert_eq(od_offline_compile(&tools, t, ptxas, spill ? spilling() : plain, "-cl-std=CL1.2",
                                            in_scratch("."), 300, &list),
                         OD_OK, "%s", od_error_message());
            cr_assert(list.count == 1 && strcmp(list.rows[0].name, "planted") == 0);
            od_offline_row row = {.target = t, .kernel = &kernel, .compiled = true, .usage = list.rows[0]};
            od_offline_judge(&row);
            cr_assert_eq(row.failure[0] != '\0', spill, "%s: %ld registers, %ld bytes spilled, %ld of arrays: %s",
                         t->name, row.usage.registers, row.usage.spill_bytes, row.usage.stack_bytes, row.failure);
            free(list.rows);
        }
        cr_assert_eq(od_offline_compile(&tools, t, ptxas, broken, "-cl-std=CL1.2", in_scratch("."), 300, &list),
                     OD_ERR_BUILD);
        cr_assert(strstr(od_error_message(), "nothing"), "the compiler's own words: %s", od_error_message());
        if (t->vendor == OD_AMD) { /* warnings are errors */
            cr_assert_eq(od_offline_compile(&tools, t, ptxas, careless, "-cl-std=CL1.2", in_scratch("."), 300, &list),
                         OD_ERR_BUILD);
            cr_assert(strstr(od_error_message(), "-Wunused-variable"), "%s", od_error_message());
        }
    }
    if (!ran)
        cr_skip_test("no vendor's compiler is here (tools/setup --with-offline)");
}

Test(offline_tools, missing_compilers_are_told) {
    const char *const variables[] = {"OFFDIAG_CLANG", "OFFDIAG_OCLOC"};
    for (size_t i = 0; i < OD_COUNT(variables); i++)
        (void)setenv(variables[i], "/nonexistent/compiler", 1);
    cli_result r = cli("matrix --offline --quick");
    cli_expect(&r, 1, "no target could be compiled for|clang-15");
    cr_assert(strstr(r.out, "gfx1030") && strstr(r.out, "skipped: no clang of release 15") &&
                  strstr(r.out, "skipped: no ocloc (Debian's intel-opencl-icd"),
              "%s", r.out);
    cr_assert(strstr(r.err, "tools/setup --with-offline"), "%s", r.err);
    r = cli("matrix --offline --quick --json");
    cli_expect(&r, 1, "no target could be compiled for");
    json_t *root = json_loads(r.out, 0, NULL), *row;
    size_t i;
    json_array_foreach(json_object_get(root, "targets"), i, row) {
        cr_assert(json_is_string(json_object_get(row, "skipped")));
    }
    cr_assert_eq(i, 3);
}

/* A target's compiler is here, another's is not: what is here counts, unless both were named. */
Test(offline_tools, a_missing_compiler_fails_only_named_targets) {
    od_tools tools;
    char why[400], ptxas[256];
    const od_target *here = NULL;
    od_tools_find(&tools, in_scratch("."));
    for (const od_target *t = od_targets; t->name && !here; t++) {
        od_target_missing(&tools, t, in_scratch("."), why, sizeof why, ptxas);
        here = why[0] || t->vendor == OD_INTEL || !t->quick ? NULL : t;
    }
    if (!here)
        cr_skip_test("no clang and AMD library, or ptxas, is here (tools/setup --with-offline)");
    (void)setenv("OFFDIAG_OCLOC", "/nonexistent/ocloc", 1);
    cli_result r = cli("matrix --offline --groups pool --device %s,dg2", here->name);
    cli_expect(&r, 1, "1 of the 2 targets|dg2|no ocloc|tools/setup --with-offline");
    cr_assert(strstr(r.out, "skipped: no ocloc"), "%s", r.out);
    (void)setenv(here->vendor == OD_AMD ? "OFFDIAG_LIBCLC" : "OFFDIAG_ROCM_BITCODE", "/nonexistent", 1);
    r = cli("matrix --offline --quick --groups pool");
    cli_expect(&r, 0, "2 of 3 targets skipped|tools/setup --with-offline");
}

/* Through the command, by the program with faults in its kernels. */
Test(offline_tools, a_spill_ends_the_command_with_1) {
    const char *program = getenv("OFFDIAG_FAULTY_BIN");
    od_tools tools;
    char why[400], ptxas[256];
    cr_assert_not_null(program, "OFFDIAG_FAULTY_BIN must name the program with planted faults");
    od_tools_find(&tools, in_scratch("."));
    for (const od_target *t = od_targets; t->name; t++) {
        od_target_missing(&tools, t, in_scratch("."), why, sizeof why, ptxas);
        if (why[0] || t->vendor == OD_INTEL || !t->quick)
            continue;
        (void)setenv("OFFDIAG_BIN", program, 1);
        cli_result r = cli("matrix --offline --groups norm --json --device %s", t->name);
        cli_expect(&r, 1, "kernels failed|running_stats|spill");
        json_t *root = json_loads(r.out, JSON_REJECT_DUPLICATES, NULL), *row;
        const json_int_t failures = json_integer_value(json_object_get(root, "failures"));
        size_t i, found = 0;
        json_array_foreach(json_object_get(root, "kernels"), i, row) {
            const char *failure = json_string_value(json_object_get(row, "failure"));
            const bool planted = strcmp(json_string_value(json_object_get(row, "kernel")), "running_stats") == 0 &&
                                 strstr(json_string_value(json_object_get(row, "options")), "-DTX=32");
            cr_assert_eq(failure != NULL, planted, "%s", failure ? failure : "the planted spill was not found");
            found += failure != NULL;
        }
        cr_assert(found > 0 && failures == (json_int_t)found, "%lld failures", (long long)failures);
        return;
    }
    cr_skip_test("no clang and AMD library, or ptxas, is here (tools/setup --with-offline)");
}

Test(offline_tools, usage) {
    cli_result r = cli("matrix --offline --device gfx1031");
    cli_expect(&r, 2, "gfx1031|gfx1030");
    r = cli("matrix --offline --html");
    cli_expect(&r, 2, "--html");
    r = cli("matrix --offline --merge x.json");
    cli_expect(&r, 2, "--offline");
}

/* A part of the quick form, for the first target that can be compiled for. */
Test(offline_tools, the_command) {
    od_tools tools;
    char why[400], ptxas[256];
    od_tools_find(&tools, in_scratch("."));
    cr_assert_eq(mkdir(in_scratch("tmp"), 0700), 0);
    (void)setenv("TMPDIR", in_scratch("tmp"), 1); /* other tests and users may have such a folder in /tmp now */
    for (const od_target *t = od_targets; t->name; t++) {
        size_t i, found = 0;
        json_t *row;
        od_target_missing(&tools, t, in_scratch("."), why, sizeof why, ptxas);
        if (why[0])
            continue;
        cli_result r = cli("matrix --offline --quick --groups dense --json --device %s", t->name);
        cli_expect(&r, 0, "");
        json_t *root = json_loads(r.out, JSON_REJECT_DUPLICATES, NULL);
        cr_assert_eq(json_integer_value(json_object_get(root, "failures")), 0);
        json_array_foreach(json_object_get(root, "kernels"), i, row) {
            cr_assert(json_is_null(json_object_get(row, "failure")));
            cr_assert(json_is_integer(json_object_get(row, "registers")) &&
                      json_is_integer(json_object_get(row, "local_bytes")) &&
                      json_is_true(json_object_get(root, "quick")));
            found += strcmp(json_string_value(json_object_get(row, "kernel")), "gemm_gpu") == 0 &&
                     json_is_true(json_object_get(row, "default")) &&
                     json_integer_value(json_object_get(row, "local_bytes")) > 0;
        }
        cr_assert_geq(found, 3, "the GPU family's products: %zu", found);
        cr_assert_eq(files_with(in_scratch("tmp"), "offdiag-offline-"), 0, "no folder is left");
        return;
    }
    cr_skip_test("no vendor's compiler is here (tools/setup --with-offline)");
}
