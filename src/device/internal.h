/* What the files of the device layer share. The only header that sees OpenCL; an OpenCL function is called in one
 * place, or two. */
#ifndef DEVICE_INTERNAL_H
#define DEVICE_INTERNAL_H

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include "offdiag/device.h"

/* ---- errors ------------------------------------------------------------------------------------------------------ */

const char *od_cl_error_name(cl_int error); /* "CL_OUT_OF_RESOURCES"; never NULL */

/* A failure of OpenCL function `call`: its name, the error's, the device's, and the words of `format`. The status
 * follows from the error: out of memory, a wrong argument, or OD_ERR_DEVICE. info may be NULL. */
od_status od_cl_fail(cl_int error, const char *call, const od_device_info *info, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- devices ----------------------------------------------------------------------------------------------------- */

/* The OpenCL handles of the device with these indices (as od_device_list numbers them). */
od_status od_cl_find(int platform_index, int device_index, cl_platform_id *platform, cl_device_id *device);

enum {
    OD_QUIRK_UNUSABLE = 1,    /* gives wrong results or crashes: never taken */
    OD_QUIRK_NO_BINARIES = 2, /* its program binaries lose something, or cost more than its own cache */
    OD_QUIRK_GROUP_SIZE = 4,  /* tells kernels' work-group limits too low: the device's own holds */
    OD_QUIRK_SAME_SIZE = 8,   /* a pooled buffer serves again only for as many bytes */
    OD_QUIRK_LOOP_LIMIT = 16, /* all loops of a work-item end early after 65,535 rounds together */
    OD_QUIRK_SMALL_TILES = 32 /* its compiler takes half a minute for a kernel of a large register tile */
};
typedef struct od_quirks {
    unsigned flags;
    const char *options; /* build options, added to every program */
} od_quirks;
/* The sum of all rows that match; their notes are put together in note. */
od_quirks od_quirks_of(const od_device_info *info, char *note, size_t note_size);

/* ---- an open device ---------------------------------------------------------------------------------------------- */

enum { OD_SIZE_CLASSES = 64 * 8, OD_KERNEL_SLOTS = 256, OD_PROFILE_PENDING = 512 };

/* A memory of the machine that devices have in common: those that this process has opened. */
typedef struct od_memory od_memory;
od_memory *od_memory_enter(const od_device_info *info); /* NULL, which the others take, without memory */
void od_memory_leave(od_memory *memory);
unsigned od_memory_users(const od_memory *memory);
bool od_memory_is_host(const od_device_info *info);

typedef struct od_pool {
    uint64_t live, peak, budget, idle; /* bytes: in use, the most ever, allowed, kept for reuse */
    od_memory *memory;                 /* NULL: the budget was given; else users of this memory divide it */
    unsigned processes;                /* that divide it too */
    size_t live_count;
    od_buffer *classes[OD_SIZE_CLASSES]; /* freed buffers by capacity */
} od_pool;

typedef struct od_program {
    struct od_program *next;
    char *name, *options;
    cl_program program;
    char key[65]; /* in the binary cache */
    bool from_cache;
} od_program;

typedef struct od_pending {
    cl_event event;
    od_kernel *kernel;
    od_work work;
} od_pending;

/* A transfer that goes on in the background, until a call that waited has seen how it ended. */
typedef struct od_transfer {
    cl_event event; /* NULL: it failed with `error` */
    cl_int error;
    const char *call;
    size_t offset, bytes;
} od_transfer;

/* ---- faults on request: see fault.c ------------------------------------------------------------------------------ */

typedef enum od_fault_kind { OD_FAULT_LAUNCH, OD_FAULT_READ, OD_FAULT_MEMORY, OD_FAULT_KINDS } od_fault_kind;

typedef struct od_faults {
    bool armed, lost; /* lost: every call fails */
    unsigned ordinal;
    uint64_t asked[OD_FAULT_KINDS]; /* which call is to fail; 0: none */
    uint64_t left[OD_FAULT_KINDS];  /* the next one that fails; 0: none */
} od_faults;

/* Of the device that this process opened as number `ordinal`, from 0. */
od_status od_faults_open(od_faults *faults, unsigned ordinal);
/* OFFDIAG_LOG=fault: how many calls there were of the kinds that were to fail. */
void od_faults_close(const od_faults *faults);

struct od_device {
    od_device_info info;
    od_family family;
    bool profiling, caching;
    od_quirks quirks;
    cl_platform_id platform;
    cl_device_id id;
    cl_context context; /* NULL: only described, see plan.h */
    cl_command_queue queue;
    unsigned unflushed; /* commands since the last flush */
    od_faults faults;
    od_pool pool;
    od_transfer *transfers; /* in the order of the queue */
    size_t transfer_count, transfer_room;
    od_program *programs;
    od_kernel *kernels[OD_KERNEL_SLOTS];
    od_pending pending[OD_PROFILE_PENDING]; /* launches whose time is not read yet */
    size_t pending_count;
    od_work_done work; /* since the last reset of the profile */
    od_build_stats stats;
    struct od_tuning *tuning; /* NULL: no memory for it */
};

struct od_buffer {
    od_device *device;
    cl_mem mem;
    size_t bytes, capacity; /* asked for, and what there is */
    od_buffer *next;        /* in the pool */
};

cl_int od_fault_count(od_device *device, od_fault_kind kind);
/* Before a call of OpenCL: the error to fail with in its place. OD_FAULT_KINDS: a call of no kind that is counted. */
static inline cl_int od_fault(od_device *device, od_fault_kind kind) {
    return device->faults.armed ? od_fault_count(device, kind) : CL_SUCCESS;
}

/* What a kernel's parameter takes, where the driver tells. */
typedef struct od_parameter {
    bool known;
    unsigned char kind, size; /* of od_arg; size of a scalar, 0 if its type is not one we know */
} od_parameter;

struct od_kernel {
    od_kernel *next; /* in its slot */
    od_device *device;
    cl_kernel kernel;
    char *program, *options, *name;
    size_t max_work_group;
    uint64_t local_bytes;
    unsigned parameter_count;
    od_parameter *parameters;
    uint64_t launches, nanoseconds; /* of profiling, and their work */
    od_work work;
    size_t largest_group; /* of work-items, that was launched */
    uint64_t largest_argument_local;
};

/* AUTO resolved by the device's type. */
od_family od_family_of(od_family asked, od_device_type type);

uint64_t od_pool_budget(const od_pool *pool);
void od_pool_empty(od_device *device); /* give idle buffers back to the driver */
/* Memory of the device that is no buffer of the pool: counts against the budget. */
od_status od_pool_count(od_device *device, size_t bytes);
void od_pool_uncount(od_device *device, size_t bytes);
cl_mem od_buffer_mem(const od_buffer *buffer);

/* After a call that waited for the queue and ended with `error`: forget the transfers that were started before it. The
 * first of them that failed is what is told; otherwise the call itself, with `bytes` where it moved any. */
od_status od_transfers_end(od_device *device, cl_int error, const char *call, size_t bytes);

/* Every enqueued command passes here: pushes work to the driver every few commands. */
void od_device_enqueued(od_device *device);

/* The program, built on first use. fresh: from source even where the cache has it (a cached one failed us). */
od_status od_program_get(od_device *device, const char *name, const char *options, bool fresh, od_program **out);
void od_programs_release(od_device *device); /* after saving what is not in the binary cache yet */
void od_kernels_release(od_device *device);

void od_work_add(od_work *sum, od_work work);
void od_work_count(od_device *device, od_work work); /* one launch */
/* Takes over the event. */
void od_profile_add(od_device *device, od_kernel *kernel, od_work work, cl_event event);
od_status od_profile_collect(od_device *device); /* waits for the pending launches */

/* ---- tuning: see tuning.h ------------------------------------------------------------------------------------------
 */

typedef struct od_tuning od_tuning;
od_tuning *od_tuning_open(const od_device_info *info); /* the rows that apply; NULL without memory */
void od_tuning_close(od_tuning *tuning);               /* NULL is fine */

/* ---- binary cache: none of it ever fails the caller ---------------------------------------------------------------
 */

/* SHA-256 of all that a binary depends on. */
void od_cache_key(char key[65], const od_device *device, const char *source, const char *options);
/* malloc'd, or NULL: nothing there, or (*rejected) something that is not what it should be. */
unsigned char *od_cache_load(const char *key, size_t *bytes, bool *rejected);
bool od_cache_keeps(void); /* false: $OFFDIAG_CACHE_MIB is 0 */
void od_cache_store(const char *key, const unsigned char *binary, size_t bytes);

#endif
