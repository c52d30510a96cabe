/* Status codes and the per-thread error message: the one error type of the whole library. */
#ifndef OFFDIAG_STATUS_H
#define OFFDIAG_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum od_status {
    OD_OK = 0,
    OD_ERR_USAGE,         /* a flag, a name or a device specification that does not exist */
    OD_ERR_ARGUMENT,      /* a caller's mistake: shapes that do not fit, a null pointer */
    OD_ERR_IO,            /* the operating system refused: open, read, write, rename */
    OD_ERR_FORMAT,        /* a file whose content is not what its format promises */
    OD_ERR_MEMORY,        /* no host memory */
    OD_ERR_DEVICE_MEMORY, /* no device memory, or the budget is used up */
    OD_ERR_DEVICE,        /* an OpenCL call failed */
    OD_ERR_BUILD,         /* a kernel did not compile: the message holds the build log */
    OD_ERR_NO_DEVICE,     /* no platform, or no device that matches */
    OD_ERR_UNSUPPORTED,   /* valid, but not on this device or in this build */
    OD_ERR_NUMERIC,       /* NaN or infinity in a loss, a comparison that failed */
    OD_ERR_INTERRUPTED,   /* a signal asked to stop; the state was saved */
    OD_ERR_PEER,          /* another device or rank of the same run failed */
} od_status;

/* The code's name in words, for example "bad file". Never NULL. */
const char *od_status_name(od_status status);

/* The message of the last failure on this thread: one or more lines without a final newline; "" before any failure.
 * The pointer stays valid until the next failure on this thread. */
const char *od_error_message(void);

/* Record a message for this thread and return `status`, so that `return od_fail(OD_ERR_IO, "...")` reads well. */
od_status od_fail(od_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Put words in front of the current message ("while loading X: ...") and return `status` unchanged. */
od_status od_fail_in(od_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#ifdef __cplusplus
}
#endif
#endif
