/* Kernel parameters as data: which values a variant takes on a device, for a class of shapes.
 *
 * A variant describes its parameters in one od_tuning_table and asks for them with od_tuning_lookup, handing over what
 * its own rule gives for the device (vector width, caches, local memory). A row replaces what it sets:
 *
 *     {"device": "Radeon RX 7900", "variant": "gemm_gpu", "shape": "m1024 n4096 k256 nn", "parameters": {"tile_m":
 * 128}}
 *
 * "device" is part of a device's name, in whole words; or "architecture", or "vendor", or none of them: any device.
 * "shape" is a class that the variant names, or "*". Order: the user's own rows ($XDG_DATA_HOME/offdiag/tuning.json,
 * which `offdiag tune` writes), then the shipped ones (data/tuning/rows.json, in the binary); in each by device, by
 * architecture, by vendor, any; an exact class before "*". Rows are input from outside: one with an unknown name, a
 * value that the table does not allow, or values that don't fit together is ignored with a line in the log.
 * OFFDIAG_TUNING=off switches all rows off. */
#ifndef DEVICE_TUNING_H
#define DEVICE_TUNING_H

#include <jansson.h>

#include "offdiag/device.h"

enum { OD_TUNING_PARAMETERS = 16, OD_TUNING_TEXT = 128 };

typedef struct od_tuning_parameter {
    const char *name;
    const int *values; /* allowed, ascending */
    int count;
    const char *rule; /* what the default follows from, in words */
} od_tuning_parameter;
#define OD_TUNING_VALUES(...)                                                                                          \
    .values = (const int[]){__VA_ARGS__}, .count = (int)(sizeof((const int[]){__VA_ARGS__}) / sizeof(int))

typedef struct od_tuning_table {
    const char *variant;
    const char *shape; /* how its classes are written, for people */
    od_tuning_parameter parameters[OD_TUNING_PARAMETERS];
    int count;
    /* Whether the device can run these values (count) together; NULL: any it can. */
    bool (*fits)(const od_device *device, const int *values);
    bool costly; /* every change is a build, even to values that were there before */
} od_tuning_table;

/* values (table->count): the defaults on entry, with what a row sets on return. Whether there was a row. */
bool od_tuning_lookup(const od_device *device, const od_tuning_table *table, const char *shape, int *values);

/* The row that the last look-up of this table and class took can't be used after all (od_error_message says why): it is
 * ignored from here on, with a line in the log, and the look-up may be tried again. False: there was none, or it was
 * forced; then the failure is the caller's. */
bool od_tuning_reject(const od_device *device, const od_tuning_table *table, const char *shape);

/* Classes of sizes: `low`, or the next of low*factor, low*factor^2, ... that holds x, at most `high`. */
static inline int od_tuning_class(int64_t x, int low, int high, int factor) {
    int64_t c = low;
    while (c < x && c < high)
        c *= factor;
    return (int)(c < high ? c : high);
}

/* Eight hexadecimal digits that follow from all rows which apply to the device; "none": its defaults count. Other rows
 * may mean other bits in a result. */
void od_tuning_fingerprint(const od_device *device, char out[9]);

/* ---- rows -------------------------------------------------------------------------------------------------------- */

typedef enum od_tuning_key { OD_TUNING_DEVICE, OD_TUNING_ARCHITECTURE, OD_TUNING_VENDOR, OD_TUNING_ANY } od_tuning_key;

typedef struct od_tuning_row {
    od_tuning_key key;
    char match[OD_TUNING_TEXT]; /* the device's, architecture's or vendor's name */
    char variant[48], shape[64];
    struct od_tuning_setting {
        char name[32];
        int value;
    } settings[OD_TUNING_PARAMETERS];
    int count;
    double gain; /* seconds before / after, as measured; 0: not known */
} od_tuning_row;

extern const char od_tuning_shipped[]; /* data/tuning/rows.json; written at build time by tools/embed_text.py */

od_status od_tuning_row_from_json(od_tuning_row *row, const json_t *object);
json_t *od_tuning_row_to_json(const od_tuning_row *row); /* NULL without memory */
/* Whether the table allows what the row sets; if not, why. device NULL: but for what fits a device. */
bool od_tuning_row_valid(const od_tuning_row *row, const od_tuning_table *table, const od_device *device,
                         const int *defaults, char *why, size_t why_size);
bool od_tuning_row_matches(const od_tuning_row *row, const od_device_info *info);

/* The rows of a document {"rows": [...]}, those that can't be read left out with a line in the log that names `origin`;
 * malloc'd. */
od_status od_tuning_rows_parse(const char *text, size_t bytes, const char *origin, od_tuning_row **rows, size_t *count);

/* ---- the user's own rows ----------------------------------------------------------------------------------------- */

od_status od_tuning_user_path(char **path); /* malloc'd */
/* All rows of the user's file; none where there is no file, or a bad one (with a line in the log). malloc'd. */
od_status od_tuning_user_rows(od_tuning_row **rows, size_t *count);
/* Put the row in the file, in place of the one for the same device, variant and shape. A row without settings removes
 * that one. The file is replaced atomically, its directory made with mode 0700; a file that can't be read stays as it
 * is: an error. */
od_status od_tuning_user_keep(const od_tuning_row *row);

/* ---- for the search ---------------------------------------------------------------------------------------------- */

void od_tuning_clear(od_device *device);                              /* forget all rows: defaults count */
od_status od_tuning_add(od_device *device, const od_tuning_row *row); /* from here on, before all others */
void od_tuning_force(od_device *device, const od_tuning_row *row);    /* of its variant, the only row, for any shape;
                                                                         borrowed; NULL: none */
/* What was looked up since od_tuning_forget, each table and class once. */
typedef struct od_tuning_asked {
    const od_tuning_table *table;
    char shape[64];
    int defaults[OD_TUNING_PARAMETERS];
} od_tuning_asked;
size_t od_tuning_asked_list(const od_device *device, const od_tuning_asked **list);
void od_tuning_forget(od_device *device);

#endif
