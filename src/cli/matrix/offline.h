/* offdiag matrix --offline: every kernel through the vendors' compilers, on a machine without their devices.
 *
 *   offline.c          the command
 *   offline_ask.c      which kernels a device like the target would be asked for
 *   offline_targets.c  the targets, the compilers and their command lines
 *   offline_parse.c    what the compilers tell about a kernel
 *   offline_child.c    one compiler run
 *   offline_compile.c  all of them; judges
 *   offline_report.c   text, Markdown and JSON
 *
 * Which programs, options and kernels there are is written down nowhere: operations, models and the theory run on a
 * device that is only described as the target is (device/plan.h), with default and with tuned parameters, and what they
 * ask for is compiled. */
#ifndef CLI_MATRIX_OFFLINE_H
#define CLI_MATRIX_OFFLINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/matrix/matrix.h"
#include "offdiag/device.h"

enum { OD_GROUP_LIMIT = 256, OD_LOCAL_LIMIT = 32 << 10 }; /* of our kernels, on any device */

/* ---- targets and compilers --------------------------------------------------------------------------------------- */

typedef enum od_vendor { OD_AMD, OD_NVIDIA, OD_INTEL, OD_VENDORS } od_vendor;

typedef struct od_target {
    const char *name;         /* as its compiler knows it */
    const char *architecture; /* as od_device_info has it */
    od_vendor vendor;
    const char *device; /* one that has it */
    unsigned compute_units, local_kib;
    long most_waves; /* of a SIMD (AMD), a multiprocessor (NVIDIA), an EU (Intel) */
    bool quick;
} od_target;
extern const od_target od_targets[]; /* ends with a NULL name */

/* The target as OpenCL would describe it. */
od_device_info od_target_info(const od_target *target);

typedef struct od_tools {
    char clang[256], clang_version[128]; /* "": none */
    char rocm[256];                      /* the folder of AMD's device library */
    char libclc[256];                    /* NVIDIA's file of libclc */
    char ptxas[512];                     /* paths, each followed by a newline: the newest does not know all targets */
    char ocloc[256];
} od_tools;

/* Both write small files in the folder `dir`. */
void od_tools_find(od_tools *tools, const char *dir);
/* Why the target can't be compiled for, and what to install; "" if it can. ptxas: the one to take, for NVIDIA. */
void od_target_missing(const od_tools *tools, const od_target *target, const char *dir, char *why, size_t why_size,
                       char ptxas[256]);

/* ---- what is asked for ------------------------------------------------------------------------------------------- */

typedef struct od_wanted_kernel {
    char *name;
    bool by_default;      /* the GPU family asks for it; else only --kernels ref, or a tuning row */
    size_t work_group;    /* the largest launched; 0: the driver's choice */
    uint64_t local_bytes; /* from arguments */
} od_wanted_kernel;

typedef struct od_wanted {
    char *program, *options, *all_options;
    od_wanted_kernel *kernels;
    size_t count;
} od_wanted;

typedef struct od_wanted_list {
    od_wanted *programs;
    size_t count;
} od_wanted_list;

/* Programs with options, each with the kernels asked of it. Free with od_wanted_free, also after a failure. groups: a
 * comma list of the self-test's groups, "training" for whole models and "speed" for the limits' kernels; "": all. */
od_status od_offline_ask(const od_device_info *info, const char *groups, od_wanted_list *out);
void od_wanted_free(od_wanted_list *list);

/* ---- what compilers tell ----------------------------------------------------------------------------------------- */

enum { OD_KERNEL_NAME = 96 };

/* Of one kernel; -1 where the compiler does not tell. Bytes are for each work-item but for local_bytes. */
typedef struct od_usage {
    char name[OD_KERNEL_NAME];
    long registers;         /* AMD: vector registers; NVIDIA: registers; Intel: of 32 bytes, for the whole thread */
    long scalar_registers;  /* AMD */
    long spill_bytes;       /* registers kept in memory */
    long scalar_spills;     /* AMD: registers kept in lanes of vector registers, not in memory */
    long stack_bytes;       /* arrays kept in memory */
    long local_bytes;       /* of a work-group */
    long waves, most_waves; /* that run at once, and could: a SIMD (AMD), a multiprocessor (NVIDIA), an EU (Intel) */
    long simd;              /* work-items of a wave, warp or thread */
    long max_group;         /* the largest work-group */
} od_usage;

typedef struct od_usage_list {
    od_usage *rows;
    size_t count;
} od_usage_list;

/* Each reads what a tool wrote, whatever it may be; OD_ERR_FORMAT that names `origin` where it is not what it should
 * be. Free rows. */
od_status od_parse_amd(const char *text, const char *origin, od_usage_list *out);   /* clang's assembly */
od_status od_parse_ptxas(const char *text, const char *origin, od_usage_list *out); /* ptxas -v */
od_status od_parse_zebin(const void *binary, size_t bytes, const char *origin, od_usage_list *out); /* ocloc's ELF */
od_status od_parse_ze_info(const char *text, const char *origin, od_usage_list *out);

/* Waves of this kernel on an NVIDIA multiprocessor of compute capability `capability` (70, 80, ...). */
void od_occupancy_nvidia(od_usage *usage, int capability, size_t work_group, uint64_t local_bytes);
/* Hardware threads of an Intel EU: registers decide. */
void od_occupancy_intel(od_usage *usage, bool xe_hpg);

/* ---- compiling --------------------------------------------------------------------------------------------------- */

enum { OD_TOOL_SAID = 4096 };
/* Run argv (ends with NULL; argv[0] is looked up in PATH) with its output and errors in the file `output`. said: the
 * end of that output after a failure. */
od_status od_tool_run(char *const argv[], const char *output, double seconds, char said[OD_TOOL_SAID]);
void od_tools_catch_signals(void); /* the first SIGINT or SIGTERM ends all tools, and makes od_tool_run fail */
bool od_tools_interrupted(void);
void od_dir_remove(const char *path); /* with all in it */

/* One program for one target, in the folder `dir`; the message of a failure ends with the compiler's words. */
od_status od_offline_compile(const od_tools *tools, const od_target *target, const char *ptxas, const char *source,
                             const char *options, const char *dir, double seconds, od_usage_list *out);

/* ---- the result -------------------------------------------------------------------------------------------------- */

typedef struct od_offline_row { /* a kernel on a target */
    const od_target *target;
    const od_wanted *program;
    const od_wanted_kernel *kernel;
    bool compiled; /* usage holds */
    od_usage usage;
    char failure[240]; /* why this is a failure; "" */
} od_offline_row;

typedef struct od_offline_target {
    const od_target *target;
    char missing[400]; /* why it was skipped; "" */
    char ptxas[256];
    od_wanted_list wanted;
    size_t first_row, row_count, failures;
    double seconds; /* of compilers */
} od_offline_target;

typedef struct od_offline {
    od_tools tools;
    od_offline_target *targets;
    size_t target_count;
    od_offline_row *rows; /* by target, program, options */
    size_t row_count, failures;
    double seconds;
    bool quick;         /* one target a vendor */
    const char *groups; /* as od_offline_ask takes them; borrowed */
} od_offline;

/* Judge a row whose usage is known: fills row->failure where a limit is passed, or registers are spilled. */
void od_offline_judge(od_offline_row *row);

/* All that the targets want, in the folder `dir`, which holds folders 0 to OD_OFFLINE_WORKERS - 1; `limit`: seconds for
 * a compiler run. Fills rows and failures; what does not compile is told on stderr and is no error here. */
enum { OD_OFFLINE_WORKERS = 2 };
od_status od_offline_compile_all(od_offline *result, const char *dir, double limit);

/* malloc'd text: OD_MATRIX_TEXT, _MARKDOWN or _JSON. */
od_status od_offline_report(const od_offline *result, od_matrix_format format, char **text, size_t *bytes);

#endif
