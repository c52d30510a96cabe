/* The portability matrix: what is right, and how fast, on which device.
 *
 *   cmd_matrix.c   options; writes the result
 *   settings.c     the settings of drivers that make rows of their own, one table
 *   rows.c         which rows this machine has
 *   run.c          a row: its groups of checks, each in a child process
 *   child.c        a child process: what it reports, what it said last, its time limit
 *   worker.c       the other side: one group of checks on one device, as JSON lines
 *   training.c     a short real training run against its reference curve
 *   report.c       text, Markdown, JSON and HTML from the same document
 *   offline.c      kernels through the vendors' compilers, without a device
 *
 * A result is one JSON document: {"devices": [a row, ...], "cases", "failed", "skipped"}; see report.c for a row. */
#ifndef CLI_MATRIX_MATRIX_H
#define CLI_MATRIX_MATRIX_H

#include <jansson.h>
#include <stdbool.h>

#include "base/options.h"
#include "offdiag/status.h"

typedef enum od_matrix_format { OD_MATRIX_TEXT, OD_MATRIX_MARKDOWN, OD_MATRIX_JSON, OD_MATRIX_HTML } od_matrix_format;

typedef struct od_matrix_options {
    char device[1024]; /* specifications, separated by commas; "": every row of this machine */
    char groups[256];  /* of checks, separated by commas; "": all */
    int kernels;       /* of this family alone (od_family); 0: of each */
    bool quick, offline, merge, list;
    bool json, markdown, html; /* at most one */
    od_matrix_format format;   /* which follows from them */
    int timeout;               /* seconds that a child process may be silent */
    char out[1024];            /* "": standard output */
    const char *program;       /* that children run: this one */
} od_matrix_options;

/* The text that a command makes: to --out (atomically), or to standard output. */
od_status od_matrix_write(const od_matrix_options *options, const char *text, size_t bytes);

/* Every kernel through the vendors' offline compilers; prints its own table. OD_ERR_NUMERIC if a kernel does not
 * compile, or spills. */
od_status od_matrix_offline(const od_matrix_options *options);

#endif
