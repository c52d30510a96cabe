/* offdiag matrix's run form: what its files share (see matrix.h for which does what). */
#ifndef CLI_MATRIX_RUN_H
#define CLI_MATRIX_RUN_H

#include <sys/types.h>

#include "cli/matrix/matrix.h"
#include "offdiag/device.h"

/* ---- rows -------------------------------------------------------------------------------------------------------- */

enum { OD_SETTING_WORDS = 6 };

/* A way to run a driver. Each of its devices makes a row; the settings belong to the row. */
typedef struct od_setting {
    const char *name;                         /* shown with the device; "": nothing set */
    const char *platform;                     /* a part of the platform's name; NULL: every device */
    const char *variables[OD_SETTING_WORDS];  /* "NAME=VALUE"; '@' stands for the folder of drivers */
    const char *runner[OD_SETTING_WORDS];     /* words before the program */
    const char *needs;                        /* a file in the folder of drivers */
    const char *unknown;                      /* words on stderr of a driver that doesn't know the setting */
    const char *complaints[OD_SETTING_WORDS]; /* words on stderr that fail the open case */
    double work_limit;                        /* of a case, in multiply-adds; 0: any */
    int patience;                             /* times the time limit; 0: once */
    bool finds;                               /* only makes devices visible */
    bool training;                            /* fast enough to train and to be timed */
} od_setting;
extern const od_setting od_settings[]; /* ends with a NULL name */

typedef struct od_matrix_row {
    const od_setting *setting;
    size_t place;   /* of the setting in od_settings */
    json_t *device; /* as `devices --json` tells it */
    const char *id, *name, *platform, *driver;
    char label[512];
} od_matrix_row;

typedef struct od_matrix_rows {
    od_matrix_row *rows;
    size_t count;
    json_t *notes; /* settings that could not be asked, and why */
} od_matrix_rows;

/* The rows that `specs` names (comma list; "": all). Free with od_matrix_rows_free, also after a failure. */
od_status od_matrix_rows_find(const od_matrix_options *options, od_matrix_rows *out);
void od_matrix_rows_free(od_matrix_rows *rows);

/* ---- child processes --------------------------------------------------------------------------------------------- */

enum { OD_CHILD_SAID = 1024, OD_CHILD_WORDS = 40 };

typedef struct od_child {
    const od_setting *setting;         /* NULL: nothing set */
    const char *words[OD_CHILD_WORDS]; /* the program's, its name first */
    int timeout;                       /* seconds without a line of it, times the setting's patience */
    /* Each line of its standard output; borrowed. */
    void (*on_line)(void *listener, char *line);
    void *listener;
    /* what came out */
    int code, signal;         /* code -1: ended by `signal` */
    bool timed_out, unknown;  /* unknown: the driver said that it doesn't know the setting */
    double seconds, limit;    /* limit: that on its silence */
    char said[OD_CHILD_SAID]; /* the end of its stderr, in printable ASCII */
} od_child;

/* Run it to its end. Fails only where it can't be run at all, or where we were interrupted. */
od_status od_child_run(od_child *child);
/* The folder of drivers that tools/setup_drivers fetched, and of caches for settings; malloc'd. */
od_status od_matrix_drivers(char **path);
/* "killed by signal 11 (Segmentation fault)", "no sign of life for 600 s", "exit code 1"; "" where it ended well. */
void od_child_outcome(const od_child *child, char *text, size_t size);

/* ---- the other side ---------------------------------------------------------------------------------------------- */

/* `offdiag matrix --worker ...`: one group of checks on one device; a JSON object a line on stdout. */
od_status od_matrix_worker(int argc, char **argv);

/* Train on the device and compare with the stored curve; an object that says what came out. scratch: a folder. */
od_status od_matrix_train(const char *spec, od_family family, bool quick, const char *scratch, json_t **out);
/* Time a few shapes: an array of objects. */
od_status od_matrix_speed(od_device *device, bool quick, json_t **out);

/* ---- results ----------------------------------------------------------------------------------------------------- */

/* Run all groups of the row. *out: the row's object. */
od_status od_matrix_run_row(const od_matrix_options *options, const od_matrix_row *row, json_t **out);

/* {"devices": rows, "cases", "failed", "skipped", ...}; takes the array. */
od_status od_matrix_document(json_t *rows, json_t **document);
/* Rows of several files. Parts of a row that have no check in common make one; a row that was run again replaces the
 * older one. */
od_status od_matrix_merge(const char *const *paths, int count, json_t **document);
/* In the options' format, to where it goes. */
od_status od_matrix_report(const od_matrix_options *options, const json_t *document);
/* OD_OK, or OD_ERR_NUMERIC with the number of failures. */
od_status od_matrix_verdict(const json_t *document);

#endif
