/* The targets, and how each vendor's compiler is called. */
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "cli/matrix/offline.h"

const od_target od_targets[] = {
    {"gfx906", "gfx906", OD_AMD, "Radeon VII, Instinct MI50", 60, 64, 10, false},
    {"gfx90a", "gfx90a", OD_AMD, "Instinct MI200", 104, 64, 8, false},
    {"gfx1030", "gfx1030", OD_AMD, "Radeon RX 6800", 36, 64, 16, true},
    {"gfx1100", "gfx1100", OD_AMD, "Radeon RX 7900", 48, 64, 16, false},
    {"sm_70", "sm_70", OD_NVIDIA, "Tesla V100", 80, 48, 64, false},
    {"sm_80", "sm_80", OD_NVIDIA, "NVIDIA A100", 108, 48, 64, true},
    {"sm_90", "sm_90", OD_NVIDIA, "NVIDIA H100", 132, 48, 64, false},
    {"tgllp", "intel 12.0", OD_INTEL, "Intel(R) Iris(R) Xe Graphics", 96, 64, 7, true},
    {"dg2", "intel 12.55", OD_INTEL, "Intel(R) Arc(TM) A770 Graphics", 512, 64, 8, false},
    {NULL, NULL, OD_VENDORS, NULL, 0, 0, 0, false},
};

static const struct {
    const char *vendor, *platform;
    size_t most_items; /* of a work-group */
} vendors[OD_VENDORS] = {
    [OD_AMD] = {"Advanced Micro Devices, Inc.", "AMD Accelerated Parallel Processing", 256},
    [OD_NVIDIA] = {"NVIDIA Corporation", "NVIDIA CUDA", 1024},
    [OD_INTEL] = {"Intel(R) Corporation", "Intel(R) OpenCL HD Graphics", 512},
};

od_device_info od_target_info(const od_target *t) {
    const size_t most = vendors[t->vendor].most_items;
    od_device_info info = {.id = "-:-",
                           .type = OD_DEVICE_GPU,
                           .compute_units = t->compute_units,
                           .clock_mhz = 1500,
                           .memory_bytes = 1ull << 34,
                           .max_alloc_bytes = 1ull << 32,
                           .local_bytes = (uint64_t)t->local_kib << 10,
                           .cache_bytes = 1 << 22,
                           .local_is_dedicated = true,
                           .max_work_group = most,
                           .max_work_item = {most, most, most},
                           .vector_width = 1,
                           .usable = true};
    (void)snprintf(info.name, sizeof info.name, "%s %s", t->name, t->device); /* tuning rows may be for either */
    (void)snprintf(info.architecture, sizeof info.architecture, "%s", t->architecture);
    (void)snprintf(info.vendor, sizeof info.vendor, "%s", vendors[t->vendor].vendor);
    (void)snprintf(info.platform, sizeof info.platform, "%s", vendors[t->vendor].platform);
    (void)snprintf(info.driver, sizeof info.driver, "offline");
    return info;
}

/* ---- which compilers there are ----------------------------------------------------------------------------------- */

/* The first of the patterns (separated by ':') that a file matches, or a program in the PATH (patterns without '/'). */
static bool find_file(const char *patterns, char *to, size_t size) {
    char list[1024];
    (void)snprintf(list, sizeof list, "%s", patterns);
    for (char *rest = list, *pattern; (pattern = strsep(&rest, ":"));) {
        glob_t found;
        if (!*pattern || glob(pattern, 0, NULL, &found) != 0)
            continue;
        const char *last = found.gl_pathv[found.gl_pathc - 1]; /* the highest version */
        const bool fits = strlen(last) < size;
        if (fits)
            (void)snprintf(to, size, "%s", last);
        globfree(&found);
        if (fits)
            return true;
    }
    return false;
}

/* What a tool prints, cut to size; false where it does not run. */
static bool tool_says(const char *tool, const char *option, const char *dir, char *text, size_t size) {
    char path[512], said[OD_TOOL_SAID], *all = NULL, *argv[] = {(char *)tool, (char *)option, NULL};
    (void)snprintf(path, sizeof path, "%s/said", dir);
    if (od_tool_run(argv, path, 20, said) || od_file_read(path, 1 << 20, &all, NULL))
        return false;
    (void)snprintf(text, size, "%s", all);
    free(all);
    return true;
}

/* The number behind "clang version "; 0: it is no clang. */
static int clang_version(const char *tool, const char *dir, char line[128]) {
    char text[512];
    int version = 0;
    if (!tool_says(tool, "--version", dir, text, sizeof text))
        return 0;
    const char *found = strstr(text, "clang version ");
    if (found && sscanf(found, "clang version %d", &version) == 1)
        (void)snprintf(line, 128, "%.*s", (int)strcspn(text, "\n"), text);
    return version;
}

static void find_clang(od_tools *tools, const char *dir) {
    /* 15 first: the release that Debian's device libraries were made with. */
    static const char *const names[] = {"clang-15", "clang-16", "clang-17", "clang-18", "clang-19",
                                        "clang-20", "clang-21", "clang",    NULL};
    const char *own[] = {getenv("OFFDIAG_CLANG"), NULL};
    for (const char *const *name = own[0] ? own : names; *name && !tools->clang[0]; name++)
        if (strlen(*name) < sizeof tools->clang && clang_version(*name, dir, tools->clang_version) >= 15)
            (void)snprintf(tools->clang, sizeof tools->clang, "%s", *name);
}

static void find_ptxas(od_tools *tools, const char *dir) {
    char text[256], list[1024], path[256];
    const char *own = getenv("OFFDIAG_PTXAS"), *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    size_t used = 0;
    if (own)
        (void)snprintf(list, sizeof list, "%s", own);
    else
        (void)snprintf(
            list, sizeof list,
            "ptxas:/usr/local/cuda/bin/ptxas:/usr/local/cuda-12*/bin/ptxas:/usr/local/cuda-11*/bin/ptxas:%s%s/"
            "offdiag/cuda/nvidia/cuda_nvcc/bin/ptxas",
            data   ? data
            : home ? home
                   : "",
            data ? "" : "/.local/share");
    for (char *rest = list, *pattern; (pattern = strsep(&rest, ":"));) {
        if (strchr(pattern, '/') ? !find_file(pattern, path, sizeof path)
                                 : snprintf(path, sizeof path, "%s", pattern) >= (int)sizeof path)
            continue;
        if (path[0] && used + strlen(path) + 2 < sizeof tools->ptxas &&
            tool_says(path, "--version", dir, text, sizeof text))
            used += (size_t)snprintf(tools->ptxas + used, sizeof tools->ptxas - used, "%s\n", path);
    }
}

void od_tools_find(od_tools *tools, const char *dir) {
    const char *rocm = getenv("OFFDIAG_ROCM_BITCODE"), *clc = getenv("OFFDIAG_LIBCLC"),
               *ocloc = getenv("OFFDIAG_OCLOC");
    char text[256], file[256];
    memset(tools, 0, sizeof *tools);
    find_clang(tools, dir);
    if (find_file(rocm ? rocm : "/usr/lib/*/amdgcn/bitcode:/usr/lib/amdgcn/bitcode:/opt/rocm*/amdgcn/bitcode", file,
                  sizeof file))
        (void)snprintf(tools->rocm, sizeof tools->rocm, "%s", file);
    if (find_file(clc ? clc : "/usr/lib/clc/nvptx64--nvidiacl.bc:/usr/share/clc/nvptx64--nvidiacl.bc", file,
                  sizeof file))
        (void)snprintf(tools->libclc, sizeof tools->libclc, "%s", file);
    find_ptxas(tools, dir);
    if (tool_says(ocloc ? ocloc : "ocloc", "--help", dir, text, sizeof text))
        (void)snprintf(tools->ocloc, sizeof tools->ocloc, "%s", ocloc ? ocloc : "ocloc");
}

/* Whether this ptxas knows the target: newer releases drop old ones. */
static bool ptxas_knows(const char *ptxas, const char *target, const char *dir) {
    static const char empty[] = ".version 6.0\n.target sm_50\n.address_size 64\n";
    char source[512], output[512], arch[32], said[OD_TOOL_SAID];
    (void)snprintf(source, sizeof source, "%s/empty.ptx", dir);
    (void)snprintf(output, sizeof output, "%s/said", dir);
    (void)snprintf(arch, sizeof arch, "-arch=%s", target);
    char *argv[] = {(char *)ptxas, arch, source, "-o", "/dev/null", NULL};
    return !od_file_write_atomic(source, empty, sizeof empty - 1) && !od_tool_run(argv, output, 20, said);
}

void od_target_missing(const od_tools *tools, const od_target *t, const char *dir, char *why, size_t why_size,
                       char ptxas[256]) {
    char list[sizeof tools->ptxas];
    why[0] = ptxas[0] = '\0';
    if (t->vendor == OD_INTEL) {
        if (!tools->ocloc[0])
            (void)snprintf(why, why_size, "no ocloc (Debian's intel-opencl-icd; or OFFDIAG_OCLOC)");
        return;
    }
    if (!tools->clang[0]) {
        (void)snprintf(why, why_size, "no clang of release 15 or newer (Debian's clang-15; or OFFDIAG_CLANG)");
        return;
    }
    if (t->vendor == OD_AMD) {
        if (!tools->rocm[0])
            (void)snprintf(why, why_size, "no AMD device library (Debian's rocm-device-libs; or OFFDIAG_ROCM_BITCODE)");
        return;
    }
    if (!tools->libclc[0]) {
        (void)snprintf(why, why_size, "no libclc for NVIDIA (Debian's libclc-15; or OFFDIAG_LIBCLC)");
        return;
    }
    (void)snprintf(list, sizeof list, "%s", tools->ptxas);
    for (char *rest = list, *path; (path = strsep(&rest, "\n"));)
        if (*path && strlen(path) < 256 && ptxas_knows(path, t->name, dir)) {
            (void)snprintf(ptxas, 256, "%s", path);
            return;
        }
    (void)snprintf(why, why_size,
                   tools->ptxas[0]
                       ? "no ptxas that knows it (CUDA 13 dropped sm_70: tools/setup --with-offline fetches "
                         "that of CUDA 12; or OFFDIAG_PTXAS)"
                       : "no ptxas (the CUDA toolkit; tools/setup --with-offline fetches it; or "
                         "OFFDIAG_PTXAS)");
}

/* ---- command lines ----------------------------------------------------------------------------------------------- */

enum { ARGUMENTS = 96 };

typedef struct command {
    char *argv[ARGUMENTS];
    int count;
    char paths[4096]; /* of arguments that were put together */
    size_t used;
} command;

static void push(command *c, const char *argument) {
    if (c->count < ARGUMENTS - 1)
        c->argv[c->count++] = (char *)argument;
    c->argv[c->count] = NULL;
}

/* Two texts as one argument. */
static void push_joined(command *c, const char *a, const char *b) {
    const size_t room = sizeof c->paths - c->used;
    const int n = snprintf(c->paths + c->used, room, "%s%s", a, b);
    if (n < 0 || (size_t)n >= room)
        return;
    push(c, c->paths + c->used);
    c->used += (size_t)n + 1;
}

static void push_clang(command *c, const char *argument) {
    push(c, "-Xclang");
    push(c, argument);
}

/* Our options hold no blanks and no quotes; `words` is cut up. */
static void push_words(command *c, char *words) {
    for (char *rest = words, *word; (word = strsep(&rest, " "));)
        if (*word)
            push(c, word);
}

static bool exists(const char *path) {
    return access(path, R_OK) == 0;
}

/* AMD's device library as clang's driver would link it, but for devices that it is too old to know: its file for an
 * architecture holds one constant, which the source then gets in front (isa.h). */
static void push_amd_library(command *c, const od_tools *tools, const od_target *t, const char *isa_header) {
    static const char *const parts[] = {"opencl",
                                        "ocml",
                                        "ockl",
                                        "oclc_daz_opt_off",
                                        "oclc_unsafe_math_off",
                                        "oclc_finite_only_off",
                                        "oclc_correctly_rounded_sqrt_off",
                                        "oclc_abi_version_400",
                                        NULL};
    const bool wave32 = strncmp(t->name, "gfx1", 4) == 0 && strlen(t->name) == 7;
    char file[400], base[300];
    (void)snprintf(base, sizeof base, "%s/", tools->rocm);
    for (const char *const *part = parts; *part; part++) {
        (void)snprintf(file, sizeof file, "%s.bc", *part);
        push_clang(c, "-mlink-builtin-bitcode");
        push(c, "-Xclang");
        push_joined(c, base, file);
    }
    push_clang(c, "-mlink-builtin-bitcode");
    push(c, "-Xclang");
    push_joined(c, base, wave32 ? "oclc_wavefrontsize64_off.bc" : "oclc_wavefrontsize64_on.bc");
    (void)snprintf(file, sizeof file, "%soclc_isa_version_%s.bc", base, t->name + 3);
    if (exists(file)) {
        push_clang(c, "-mlink-builtin-bitcode");
        push(c, "-Xclang");
        push_joined(c, file, "");
    } else {
        push(c, "-include");
        push(c, isa_header);
    }
}

/* "gfx1100" is 11000, "gfx90a" 9010: two last hexadecimal digits of two decimal ones each. */
static od_status write_isa_header(const od_target *t, const char *path) {
    char text[128];
    const char *digits = t->name + 3;
    const long number = strtol(digits, NULL, 16);
    const int n = snprintf(text, sizeof text, "__constant const int __oclc_ISA_version = %ld;\n",
                           strtol(digits, NULL, 16) / 256 % 16 * 1000 + number / 4096 * 10000 + number / 16 % 16 * 100 +
                               number % 16);
    return od_file_write_atomic(path, text, (size_t)n);
}

static od_status compile_amd(const od_tools *tools, const od_target *t, command *c, const char *dir, double seconds,
                             od_usage_list *out) {
    char source[300], output[300], log[300], isa[300], said[OD_TOOL_SAID], cpu[40], *text = NULL;
    (void)snprintf(source, sizeof source, "%s/k.cl", dir);
    (void)snprintf(output, sizeof output, "%s/k.s", dir);
    (void)snprintf(log, sizeof log, "%s/log", dir);
    (void)snprintf(isa, sizeof isa, "%s/isa.h", dir);
    (void)snprintf(cpu, sizeof cpu, "-mcpu=%s", t->name);
    od_status status = write_isa_header(t, isa);
    if (status)
        return status;
    push(c, "-Wall"); /* for all targets: the others' compilers, or their libraries, have warnings of their own */
    push(c, "-Wno-unused-function"); /* of headers */
    push(c, "-Werror");
    push(c, "-target");
    push(c, "amdgcn-amd-amdhsa");
    push(c, cpu);
    push(c, "-nogpulib");
    push_amd_library(c, tools, t, isa);
    push_clang(c, "-finclude-default-header");
    push(c, "-O3");
    push(c, "-S");
    push(c, source);
    push(c, "-o");
    push(c, output);
    if ((status = od_tool_run(c->argv, log, seconds, said)))
        return status == OD_ERR_INTERRUPTED ? status : od_fail(status, "%s\n%s", od_error_message(), said);
    if ((status = od_file_read(output, 64 << 20, &text, NULL)))
        return status;
    status = od_parse_amd(text, t->name, out);
    for (size_t i = 0; i < out->count; i++)
        out->rows[i].most_waves = t->most_waves;
    free(text);
    return status;
}

/* clang-15 does not know sm_90: PTX for sm_80, which ptxas then makes into code for sm_90. */
static const char *ptx_of(const od_target *t) {
    return strcmp(t->name, "sm_90") == 0 ? "sm_80" : t->name;
}

static od_status compile_nvidia(const od_tools *tools, const od_target *t, const char *ptxas, command *c,
                                const char *dir, double seconds, od_usage_list *out) {
    char source[300], ptx[300], log[300], said[OD_TOOL_SAID], arch[40], *text = NULL;
    (void)snprintf(source, sizeof source, "%s/k.cl", dir);
    (void)snprintf(ptx, sizeof ptx, "%s/k.ptx", dir);
    (void)snprintf(log, sizeof log, "%s/log", dir);
    (void)snprintf(arch, sizeof arch, "-arch=%s", t->name);
    push(c, "-target");
    push(c, "nvptx64-nvidia-nvcl");
    push_clang(c, "-target-cpu");
    push_clang(c, ptx_of(t));
    push_clang(c, "-finclude-default-header");
    push_clang(c, "-mlink-bitcode-file");
    push_clang(c, tools->libclc);
    push(c, "-O3");
    push(c, "-S");
    push(c, source);
    push(c, "-o");
    push(c, ptx);
    char *assemble[] = {(char *)ptxas, "-v", arch, ptx, "-o", "/dev/null", NULL};
    od_status status = od_tool_run(c->argv, log, seconds, said);
    if (!status)
        status = od_tool_run(assemble, log, seconds, said);
    if (status)
        return status == OD_ERR_INTERRUPTED ? status : od_fail(status, "%s\n%s", od_error_message(), said);
    if ((status = od_file_read(log, 16 << 20, &text, NULL)))
        return status;
    status = od_parse_ptxas(text, t->name, out);
    free(text);
    return status;
}

static od_status compile_intel(const od_tools *tools, const od_target *t, const char *options, const char *dir,
                               double seconds, od_usage_list *out) {
    char source[300], output[300], log[300], said[OD_TOOL_SAID], *binary = NULL;
    size_t bytes = 0;
    (void)snprintf(source, sizeof source, "%s/k.cl", dir);
    (void)snprintf(log, sizeof log, "%s/log", dir);
    (void)snprintf(output, sizeof output, "%s/kernel", dir);
    char *argv[] = {(char *)tools->ocloc,
                    "compile",
                    "-file",
                    source,
                    "-device",
                    (char *)t->name,
                    "-options",
                    (char *)options,
                    "-internal_options",
                    "-cl-intel-allow-zebin",
                    "-out_dir",
                    (char *)dir,
                    "-output",
                    "kernel",
                    "-output_no_suffix",
                    NULL};
    (void)remove(output);
    od_status status = od_tool_run(argv, log, seconds, said);
    if (status)
        return status == OD_ERR_INTERRUPTED ? status : od_fail(status, "%s\n%s", od_error_message(), said);
    if (!exists(output)) /* newer releases add an ending all the same */
        (void)snprintf(output, sizeof output, "%s/kernel.bin", dir);
    if ((status = od_file_read(output, 256 << 20, &binary, &bytes)))
        return status;
    status = od_parse_zebin(binary, bytes, t->name, out);
    (void)remove(output);
    for (size_t i = 0; i < out->count; i++)
        od_occupancy_intel(&out->rows[i], strcmp(t->name, "tgllp") != 0);
    free(binary);
    return status;
}

od_status od_offline_compile(const od_tools *tools, const od_target *t, const char *ptxas, const char *source,
                             const char *options, const char *dir, double seconds, od_usage_list *out) {
    char path[300], *words = strdup(options);
    command c = {.count = 0};
    *out = (od_usage_list){NULL, 0};
    if (!words)
        return od_fail(OD_ERR_MEMORY, "no memory for options");
    (void)snprintf(path, sizeof path, "%s/k.cl", dir);
    od_status status = od_file_write_atomic(path, source, strlen(source));
    if (!status && t->vendor != OD_INTEL) {
        push(&c, tools->clang);
        push(&c, "-x");
        push(&c, "cl");
        push_words(&c, words);
    }
    if (!status)
        status = t->vendor == OD_AMD      ? compile_amd(tools, t, &c, dir, seconds, out)
                 : t->vendor == OD_NVIDIA ? compile_nvidia(tools, t, ptxas, &c, dir, seconds, out)
                                          : compile_intel(tools, t, options, dir, seconds, out);
    free(words);
    return status;
}
