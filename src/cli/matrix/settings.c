/* The settings of drivers that make rows of their own. A setting whose driver is not here makes no row. */
#include "cli/matrix/run.h"

/* How PoCL makes one function of a work-group's items: each method is a compiler pass of its own. Caches of their own
 * too, since nothing in a cached binary tells the method. (`workitemrepl` unrolls all 256 items: minutes a kernel.) */
#define POCL(method)                                                                                                   \
    {                                                                                                                  \
        .name = "POCL_WORK_GROUP_METHOD=" method, .platform = "portable computing",                                    \
        .variables = {"POCL_WORK_GROUP_METHOD=" method, "XDG_CACHE_HOME=@/cache/pocl-" method},                        \
        .unknown = "Unknown work group", .training = true                                                              \
    }

/* Races and accesses outside buffers, or uninitialised reads: errors that other devices may not show. */
#define OCLGRIND(option)                                                                                               \
    {                                                                                                                  \
        .name = "oclgrind " option, .platform = "oclgrind", .runner = {"oclgrind", option, "--max-errors", "20"},      \
        .complaints = {"Invalid ", "data race", "Uninitialized ", "divergence"}, .work_limit = 20000, .patience = 3    \
    }

const od_setting od_settings[] = {
    {.name = "", .training = true},
    {.name = "RUSTICL_ENABLE=llvmpipe",
     .platform = "rusticl",
     .variables = {"RUSTICL_ENABLE=llvmpipe"},
     .patience = 2,
     .finds = true,
     .training = true},
    {.name = "POCL_DEVICES=basic",
     .platform = "portable computing",
     .variables = {"POCL_DEVICES=basic"},
     .training = true},
    POCL("loopvec"),
    POCL("cbs"),
    /* tools/setup_drivers puts it there. */
    {.name = "intel-opencl-rt",
     .platform = "intel(r) opencl",
     .variables = {"OCL_ICD_VENDORS=@/intel/vendors"},
     .needs = "intel/vendors/intel.icd",
     .patience = 2,
     .finds = true,
     .training = true},
    OCLGRIND("--data-races"),
    OCLGRIND("--uninitialized"),
    {NULL},
};
