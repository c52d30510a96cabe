/* Options from one table: the same rows read command-line flags and JSON, check ranges, print help and write JSON.
 *
 * A row names a field of a struct by offset, so a table describes a struct once (a training configuration, the flags of
 * a command). The flag is "--" + name; the JSON key is the name with '_' for '-'. Strings are copied into char arrays.
 */
#ifndef BASE_OPTIONS_H
#define BASE_OPTIONS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "offdiag/status.h"

typedef enum od_option_kind {
    OD_OPTION_HEADING, /* only `help`: a title in the help text */
    OD_OPTION_FLAG,    /* bool; --name, or --name=true|false */
    OD_OPTION_INT,     /* int */
    OD_OPTION_U64,     /* uint64_t, below 2^63 */
    OD_OPTION_DOUBLE,  /* double, finite */
    OD_OPTION_STRING,  /* char[size] */
    OD_OPTION_CHOICE,  /* int or an enum: the index in `choices` */
} od_option_kind;

typedef struct od_option {
    const char *name;
    od_option_kind kind;
    size_t offset, size;
    double min, max;            /* of numbers, inclusive */
    const char *const *choices; /* ends with NULL */
    const char *value;          /* its name in the help, "N" */
    const char *help;
} od_option;

#define OD_OPTION_FIELD(type, field) .offset = offsetof(type, field), .size = sizeof(((type *)0)->field)
#define OD_OPT_HEADING(text)                                                                                           \
    { .kind = OD_OPTION_HEADING, .help = (text) }
#define OD_OPT_FLAG(type, field, flag, text)                                                                           \
    { .name = (flag), .kind = OD_OPTION_FLAG, OD_OPTION_FIELD(type, field), .help = (text) }
#define OD_OPT_INT(type, field, flag, low, high, text)                                                                 \
    {                                                                                                                  \
        .name = (flag), .kind = OD_OPTION_INT, OD_OPTION_FIELD(type, field), .min = (low), .max = (high),              \
        .value = "N", .help = (text)                                                                                   \
    }
#define OD_OPT_U64(type, field, flag, text)                                                                            \
    { .name = (flag), .kind = OD_OPTION_U64, OD_OPTION_FIELD(type, field), .max = 0x1p63, .value = "N", .help = (text) }
#define OD_OPT_DOUBLE(type, field, flag, low, high, text)                                                              \
    {                                                                                                                  \
        .name = (flag), .kind = OD_OPTION_DOUBLE, OD_OPTION_FIELD(type, field), .min = (low), .max = (high),           \
        .value = "X", .help = (text)                                                                                   \
    }
#define OD_OPT_STRING(type, field, flag, value_name, text)                                                             \
    { .name = (flag), .kind = OD_OPTION_STRING, OD_OPTION_FIELD(type, field), .value = (value_name), .help = (text) }
#define OD_OPT_CHOICE(type, field, flag, names, text)                                                                  \
    { .name = (flag), .kind = OD_OPTION_CHOICE, OD_OPTION_FIELD(type, field), .choices = (names), .help = (text) }

/* A table and the struct it fills. */
typedef struct od_options {
    const od_option *rows;
    size_t count;
    void *target;
} od_options;

enum { OD_MAX_POSITIONALS = 64 };
typedef struct od_positionals {
    const char *values[OD_MAX_POSITIONALS];
    int count;
    int min, max;      /* how many are allowed, by the caller */
    const char *usage; /* "RUN... --out FILE.html", for messages and help */
    const char *about; /* what the command does: one or more lines */
} od_positionals;

/* Flags of one command into several tables (the first that knows a name takes it): "--name value", "--name=value", "--"
 * ends the flags. argv[0] is the command's name. --help or -h prints the help on stdout, sets *help and leaves the rest
 * unread. Mistakes are OD_ERR_USAGE with the nearest valid name; argv is not changed. */
od_status od_options_parse(const od_options *tables, size_t tables_count, od_positionals *positionals, int argc,
                           char *const *argv, bool *help);

/* Help as text on stdout: flags with their present values as the defaults. */
void od_options_help(const od_options *tables, size_t tables_count, const char *command, const od_positionals *p);

/* Every key must be a row's, every value of its kind and range: OD_ERR_FORMAT that names `origin` and the key. */
od_status od_options_from_json(const od_options *table, const json_t *object, const char *origin);
od_status od_options_to_json(const od_options *table, json_t *object); /* adds a member for each row */

#endif
