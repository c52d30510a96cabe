/* The device layer: find OpenCL devices, open one, give it buffers, kernels and launches.
 *
 * One od_device holds a context, ONE in-order queue, a buffer pool with a budget, and the programs built so far. Work
 * is enqueued and returns at once; only od_buffer_read, od_device_finish and od_mark_wait wait. A device is used from
 * one thread at a time; several devices may be used from as many threads at once, even where they are the same
 * hardware. Nothing outside src/device sees an OpenCL type. */
#ifndef OFFDIAG_DEVICE_H
#define OFFDIAG_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "offdiag/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- what is there ---------------------------------------------------------------------------------------------- */

typedef enum od_device_type { OD_DEVICE_CPU, OD_DEVICE_GPU, OD_DEVICE_ACCELERATOR } od_device_type;

typedef struct od_device_info {
    int platform_index, device_index;                                      /* 0-based, as `clinfo -l` numbers them */
    char id[24];                                                           /* "P:D" */
    char name[256], vendor[128], platform[128], driver[128], version[128]; /* version: CL_DEVICE_VERSION */
    char platform_version[128];
    char architecture[48]; /* "sm_90", "gfx1100", "x86_64 float16"; "" where it can't be told */
    char physical[48];     /* the hardware, through whichever platform: "cpu", "pci 0000:03:00.0"; "": can't be told */
    od_device_type type;
    unsigned compute_units, clock_mhz;
    uint64_t memory_bytes, max_alloc_bytes, local_bytes, cache_bytes;
    bool local_is_dedicated; /* CL_LOCAL: real on-chip memory; false on CPUs */
    size_t max_work_group;
    size_t max_work_item[3];
    unsigned vector_width;     /* native float vector width; 1 where the device does not say */
    bool has_half, has_double; /* arithmetic, by extension */
    bool unified_memory;
    bool usable;    /* available, with a compiler, little-endian */
    char note[256]; /* why it is not usable, or what its quirks are; "" otherwise */
} od_device_info;

/* Every device of every platform, in `clinfo -l` order. A platform that is empty or fails is skipped with a note in the
 * log. *infos is malloc'd (free it); zero devices is not an error here. */
od_status od_device_list(od_device_info **infos, size_t *count);

/* Resolve SPEC against a list: "auto" | "gpu" | "cpu" | "P:D" | part of a device or platform name (no case).
 * NULL or "" means the OFFDIAG_DEVICE variable, then "auto". auto: discrete GPU, then integrated GPU, then CPU (then
 * accelerator), the first usable in list order. *reason (may be NULL; static or thread-local storage) says why it was
 * taken. A list (see below) that names several devices is OD_ERR_USAGE. No match or an ambiguous one: OD_ERR_NO_DEVICE
 * with the candidates; an empty list: what to install for each vendor. */
od_status od_device_select(const od_device_info *infos, size_t count, const char *spec, size_t *index,
                           const char **reason);

/* Resolve a list: "A,B,..." (each as above), "all" (every usable device) or "gpus" (every usable GPU); NULL or "" as
 * above. all and gpus leave out what another platform shows already, where drivers tell (od_device_info.physical): the
 * entry with the widest vectors stays, then the first. A device named more than once is OD_ERR_USAGE, but by its number
 * each time ("0:0,0:0"): then it is opened as often. More than `capacity`: OD_ERR_USAGE. Each is opened by its id. */
od_status od_devices_select(const od_device_info *infos, size_t count, const char *spec, size_t *indices,
                            size_t capacity, size_t *selected, const char **reason);

/* ---- an open device --------------------------------------------------------------------------------------------- */

typedef struct od_device od_device;

/* Which kernel variants may run: AUTO takes the device's own family, then ref; a forced family falls back to ref where
 * an operation has no variant of that family, so that the GPU family can be tested on a CPU device. */
typedef enum od_family { OD_FAMILY_AUTO, OD_FAMILY_REF, OD_FAMILY_CPU, OD_FAMILY_GPU } od_family;

/* The cache of program binaries. AUTO uses it but for drivers that keep a better one or whose binaries lose something;
 * ALWAYS for those too; NEVER neither reads nor writes it. */
typedef enum od_caching { OD_CACHE_AUTO, OD_CACHE_ALWAYS, OD_CACHE_NEVER } od_caching;

typedef struct od_device_options {
    od_family family;
    od_caching cache;
    bool profile;          /* events and times per kernel; slower */
    uint64_t memory_bytes; /* budget for buffers; 0: 80 % of what the device reports, divided among its users */
    /* Processes on this machine that do the same (MPI ranks): the host's memory, which CPUs and integrated GPUs share,
     * is divided among them too. 0: one. */
    unsigned processes;
} od_device_options;

/* Open the device that SPEC names (see od_device_select). options may be NULL.
 *
 * For tests, OFFDIAG_FAULT="KIND:DEVICE:N[,...]" makes the device that this process opened as number DEVICE (from 0)
 * fail at the N-th call of a KIND: launch, or read (waiting or in the background): as a driver does that has lost the
 * device, CL_OUT_OF_RESOURCES then and for all later calls; memory: the N-th buffer can't be allocated, later ones can.
 * OFFDIAG_LOG=fault tells how many calls of that kind there were. */
od_status od_device_open(const char *spec, const od_device_options *options, od_device **out);
void od_device_close(od_device *device); /* NULL is fine */

const od_device_info *od_device_get_info(const od_device *device);
od_family
od_device_family(const od_device *device); /* AUTO already resolved by the device's type: CPU or GPU, or as forced */
/* How many rounds all loops of one work-item may make together; 0: any number. A limit is a driver's quirk (see
 * src/device/quirks.c): past it loops end early, without an error. Operations cut their work into more work-items, or
 * refuse it. */
uint64_t od_device_loop_limit(const od_device *device);
/* Whether kernels should be short: the driver's compiler takes too long for unrolled ones. A quirk as well. */
bool od_device_small_tiles(const od_device *device);
extern const char *const od_family_names[];             /* in the order of od_family, ends with NULL */
bool od_family_parse(const char *text, od_family *out); /* "auto" "ref" "cpu" "gpu" */
const char *od_family_name(od_family family);

od_status od_device_flush(od_device *device);  /* push what is queued to the driver; does not wait */
od_status od_device_finish(od_device *device); /* wait for all of it */

/* ---- buffers ---------------------------------------------------------------------------------------------------- */

typedef struct od_buffer od_buffer;

/* Bytes in use by live buffers, the most that live and idle ones together ever held, and the budget. */
typedef struct od_memory_use {
    uint64_t live, peak, budget;
} od_memory_use;
od_memory_use od_device_memory(const od_device *device);

/* A device buffer of at least `bytes` (zero allowed), taken from the pool when a freed one fits. Contents undefined.
 * OD_ERR_DEVICE_MEMORY says size, live bytes, budget and the largest allocation. */
od_status od_buffer_create(od_device *device, size_t bytes, od_buffer **out);
void od_buffer_release(od_buffer *buffer); /* back to the pool; safe while queued work still uses it; NULL is fine */
size_t od_buffer_size(const od_buffer *buffer);
od_device *od_buffer_device(const od_buffer *buffer);

/* offset and bytes in bytes. write: `data` may be reused on return. read: waits. Out of range: OD_ERR_ARGUMENT. */
od_status od_buffer_write(od_buffer *buffer, size_t offset, const void *data, size_t bytes);
od_status od_buffer_read(const od_buffer *buffer, size_t offset, void *data, size_t bytes);
od_status od_buffer_copy(od_buffer *to, size_t to_offset, const od_buffer *from, size_t from_offset, size_t bytes);
od_status od_buffer_fill(od_buffer *buffer, size_t offset, size_t bytes, uint32_t pattern); /* multiples of 4 */

/* The same in the background: they return at once, and `data` is the driver's (read: not there yet; write: not to be
 * changed) until a later od_buffer_read, od_device_finish or od_mark_wait of the device has returned. What failed
 * meanwhile is told by the next od_buffer_read or od_device_finish, by its place and size. `data` best lies in pinned
 * memory. */
od_status od_buffer_write_start(od_buffer *buffer, size_t offset, const void *data, size_t bytes);
od_status od_buffer_read_start(const od_buffer *buffer, size_t offset, void *data, size_t bytes);

/* How far the queue has got: a mark is passed once all that was queued before it is over. It also flushes. Any thread
 * may wait, one at a time, while the device's own goes on. Without OD_OK from the next od_buffer_read or
 * od_device_finish it is not known whether what came before the mark went well. */
typedef struct od_mark od_mark;
od_status od_device_mark(od_device *device, od_mark **out);
od_status od_mark_wait(const od_mark *mark);
void od_mark_release(od_mark *mark); /* passed or not; NULL is fine */

/* Host memory (aligned to 64 bytes, contents undefined) that the driver transfers from and to without a copy of its
 * own; plain memory where the driver has none to give. Where host and device share memory it counts in
 * od_device_memory. Release it when the transfers from and to it are over, before the device is closed. */
typedef struct od_pinned od_pinned;
od_status od_pinned_create(od_device *device, size_t bytes, od_pinned **out);
void *od_pinned_memory(const od_pinned *pinned);
void od_pinned_release(od_pinned *pinned); /* NULL is fine */

/* A place in a buffer, in float (or 32-bit) elements. Kernels take it as a pointer and a 64-bit offset. */
typedef struct od_span {
    od_buffer *buffer; /* NULL: no tensor */
    size_t offset;
} od_span;
static inline od_span od_span_at(od_span s, size_t elements) {
    return (od_span){s.buffer, s.offset + elements};
}
static inline od_span od_span_of(od_buffer *buffer) {
    return (od_span){buffer, 0};
}
#define OD_NO_SPAN ((od_span){0})

/* A buffer of `elements` floats as a span at offset 0; release with od_buffer_release(span.buffer). */
od_status od_span_create(od_device *device, size_t elements, od_span *out);
/* The same for use within one operation: it may be far larger than asked for, so that operations share a few buffers.
 */
od_status od_span_borrow(od_device *device, size_t elements, od_span *out);
od_status od_span_write(od_span to, const float *data, size_t elements);
od_status od_span_read(od_span from, float *data, size_t elements);
od_status od_span_write_start(od_span to, const float *data, size_t elements);
od_status od_span_read_start(od_span from, float *data, size_t elements);
od_status od_span_zero(od_span s, size_t elements);
od_status od_span_copy(od_span to, od_span from, size_t elements);

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

typedef struct od_kernel od_kernel;

/* The kernel `name` of the embedded program `program` (cl/<program>.cl), built with `options` ("-DTILE=8"; may be "")
 * for this device; built on first use, from the binary cache when it is there, and kept by the device. -cl-std=CL1.2,
 * -cl-mad-enable and the device's quirk options are always added. Cheap to call again (hash look-up). */
od_status od_kernel_get(od_device *device, const char *program, const char *options, const char *name, od_kernel **out);
size_t od_kernel_max_work_group(const od_kernel *kernel); /* CL_KERNEL_WORK_GROUP_SIZE */
uint64_t od_kernel_local_bytes(const od_kernel *kernel);

typedef struct od_arg {
    enum { OD_ARG_BUFFER, OD_ARG_SCALAR, OD_ARG_LOCAL } kind;
    size_t size; /* bytes of the scalar, or of local memory */
    union {
        const od_buffer *buffer;
        int32_t i32;
        uint32_t u32;
        int64_t i64;
        uint64_t u64;
        float f32;
    } value;
} od_arg;
/* The host side of kernel parameters. OD_SPAN stands for two: `__global float *p, ulong p_offset`; a span without a
 * buffer passes a NULL pointer and offset 0. */
#define OD_BUF(b)       ((od_arg){.kind = OD_ARG_BUFFER, .value.buffer = (b)})
#define OD_SPAN(s)      OD_BUF((s).buffer), OD_U64((s).offset)
#define OD_I32(v)       ((od_arg){.kind = OD_ARG_SCALAR, .size = 4, .value.i32 = (v)})
#define OD_U32(v)       ((od_arg){.kind = OD_ARG_SCALAR, .size = 4, .value.u32 = (v)})
#define OD_U64(v)       ((od_arg){.kind = OD_ARG_SCALAR, .size = 8, .value.u64 = (v)})
#define OD_F32(v)       ((od_arg){.kind = OD_ARG_SCALAR, .size = 4, .value.f32 = (v)})
#define OD_LOCAL(bytes) ((od_arg){.kind = OD_ARG_LOCAL, .size = (bytes)})

/* What a launch does, for figures of speed: the floating-point operations it makes (those of a Winograd convolution
 * itself, not of the sum it stands for), and the bytes of each tensor it reads and of each it writes, once. Zeros: not
 * told. */
typedef struct od_work {
    double flop, bytes;
} od_work;

/* Work-items: global is rounded UP to a multiple of local (kernels test their bounds, uniformly around barriers);
 * local 0: one work-group dimension left to the driver. A zero in global: nothing runs, OD_OK. */
typedef struct od_range {
    size_t global[3], local[3];
    od_work work;
} od_range;
#define OD_RANGE1(g, l)                   ((od_range){{(g), 1, 1}, {(l), 1, 1}})
#define OD_RANGE2(g0, g1, l0, l1)         ((od_range){{(g0), (g1), 1}, {(l0), (l1), 1}})
#define OD_RANGE3(g0, g1, g2, l0, l1, l2) ((od_range){{(g0), (g1), (g2)}, {(l0), (l1), (l2)}})
/* The same launch, with its work told: OD_LAUNCH(kernel, od_range_work(OD_RANGE1(n, 64), 2.0 * n, 12.0 * n), ...). */
static inline od_range od_range_work(od_range range, double flop, double bytes) {
    range.work = (od_work){flop, bytes};
    return range;
}

/* Enqueue. The message of a failure names kernel, device, sizes and the CL error. */
od_status od_launch(od_kernel *kernel, od_range range, const od_arg *args, size_t arg_count);
#define OD_LAUNCH(kernel, range, ...)                                                                                  \
    od_launch((kernel), (range), (const od_arg[]){__VA_ARGS__}, sizeof((const od_arg[]){__VA_ARGS__}) / sizeof(od_arg))

/* ---- profiling -------------------------------------------------------------------------------------------------- */

typedef struct od_profile_row {
    char kernel[96]; /* "program:kernel", with the options that tell variants apart */
    uint64_t launches;
    double seconds; /* on the device */
    od_work work;   /* of all launches; zeros where they don't tell it */
} od_profile_row;

/* Rows by time, largest first, since the last reset; malloc'd. Empty unless the device was opened with profile. Waits.
 */
od_status od_device_profile(od_device *device, od_profile_row **rows, size_t *count);
void od_device_profile_reset(od_device *device);

/* Without profiling too: what was launched since the last reset. */
typedef struct od_work_done {
    od_work work; /* of those launches that tell it */
    uint64_t launches, untold;
} od_work_done;
od_work_done od_device_work(const od_device *device);

/* What start-up cost so far: programs built from source, loaded from the cache, and seconds spent on both. */
typedef struct od_build_stats {
    unsigned built, cached, rejected; /* rejected: cache entries found corrupt or stale and rebuilt */
    double seconds;
} od_build_stats;
od_build_stats od_device_build_stats(const od_device *device);

#ifdef __cplusplus
}
#endif
#endif
