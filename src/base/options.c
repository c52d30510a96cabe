#include "base/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/text.h"

enum { NAMES_MAX = 256, NAME_MAX_BYTES = 64 };

static void *field_of(const od_options *t, const od_option *row) {
    return (char *)t->target + row->offset;
}

/* The names of all rows, for od_nearest. */
typedef struct name_list {
    const char *names[NAMES_MAX + 1];
    size_t count;
} name_list;

static void add_name(name_list *list, const char *name) {
    if (name && list->count < NAMES_MAX)
        list->names[list->count++] = name;
}

static void add_names(name_list *list, const od_options *t) {
    for (size_t i = 0; i < t->count; i++)
        add_name(list, t->rows[i].name);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

/* What a row takes, in words: "an integer from 1 to 10", "one of none, linear". */
static void describe(const od_option *row, char *to, size_t size) {
    size_t used = 0;
    switch (row->kind) {
    case OD_OPTION_FLAG:
        (void)snprintf(to, size, "true or false");
        break;
    case OD_OPTION_INT:
        (void)snprintf(to, size, "an integer from %.0f to %.0f", row->min, row->max);
        break;
    case OD_OPTION_U64:
        (void)snprintf(to, size, "an integer from 0 to 2^63 - 1");
        break;
    case OD_OPTION_DOUBLE:
        (void)snprintf(to, size, "a number from %g to %g", row->min, row->max);
        break;
    case OD_OPTION_CHOICE:
        used = (size_t)snprintf(to, size, "one of ");
        for (size_t i = 0; row->choices[i] && used < size; i++)
            used += (size_t)snprintf(to + used, size - used, "%s%s", i ? ", " : "", row->choices[i]);
        break;
    default:
        (void)snprintf(to, size, "text of at most %zu bytes", row->size - 1);
    }
}

static bool set_integer(const od_option *row, void *field, int64_t value) {
    if (row->kind == OD_OPTION_U64) {
        if (value < 0)
            return false;
        *(uint64_t *)field = (uint64_t)value;
        return true;
    }
    if ((double)value < row->min || (double)value > row->max || value < INT32_MIN || value > INT32_MAX)
        return false;
    *(int *)field = (int)value;
    return true;
}

static bool set_double(const od_option *row, void *field, double value) {
    if (!isfinite(value) || value < row->min || value > row->max)
        return false;
    *(double *)field = value;
    return true;
}

/* A flag, text or one of the choices. */
static bool set_text(const od_option *row, void *field, const char *text) {
    if (row->kind == OD_OPTION_STRING) {
        if (strlen(text) >= row->size)
            return false;
        memcpy(field, text, strlen(text) + 1);
        return true;
    }
    if (row->kind == OD_OPTION_FLAG) {
        bool yes = strcmp(text, "true") == 0;
        if (yes || strcmp(text, "false") == 0)
            *(bool *)field = yes;
        return yes || strcmp(text, "false") == 0;
    }
    for (int i = 0; row->choices[i]; i++)
        if (strcmp(row->choices[i], text) == 0) {
            *(int *)field = i;
            return true;
        }
    return false;
}

/* A value from the command line; it must be used up to its last character. */
static bool set_argument(const od_option *row, void *field, const char *text) {
    char *end;
    errno = 0;
    if (row->kind == OD_OPTION_INT || row->kind == OD_OPTION_U64) {
        long long value = strtoll(text, &end, 10);
        return !isspace((unsigned char)text[0]) && end != text && !*end && !errno && set_integer(row, field, value);
    }
    if (row->kind == OD_OPTION_DOUBLE) {
        double value = strtod(text, &end);
        return !isspace((unsigned char)text[0]) && end != text && !*end && set_double(row, field, value);
    }
    return set_text(row, field, text);
}

static bool set_json(const od_option *row, void *field, const json_t *value) {
    switch (row->kind) {
    case OD_OPTION_FLAG:
        if (json_is_boolean(value))
            *(bool *)field = json_is_true(value);
        return json_is_boolean(value);
    case OD_OPTION_INT:
    case OD_OPTION_U64:
        return json_is_integer(value) && set_integer(row, field, json_integer_value(value));
    case OD_OPTION_DOUBLE:
        return json_is_number(value) && set_double(row, field, json_number_value(value));
    default:
        return json_is_string(value) && set_text(row, field, json_string_value(value));
    }
}

/* The present value as text; "" for a string that is not set. */
static void print_value(const od_option *row, const void *field, char *to, size_t size) {
    switch (row->kind) {
    case OD_OPTION_FLAG:
        (void)snprintf(to, size, "%s", *(const bool *)field ? "true" : "false");
        break;
    case OD_OPTION_INT:
        (void)snprintf(to, size, "%d", *(const int *)field);
        break;
    case OD_OPTION_U64:
        (void)snprintf(to, size, "%llu", (unsigned long long)*(const uint64_t *)field);
        break;
    case OD_OPTION_DOUBLE:
        (void)snprintf(to, size, "%g", *(const double *)field);
        break;
    case OD_OPTION_CHOICE:
        (void)snprintf(to, size, "%s", row->choices[*(const int *)field]);
        break;
    default:
        (void)snprintf(to, size, "%s", (const char *)field);
    }
}

/* ---- command line ------------------------------------------------------------------------------------------------ */

/* The row named by the first `length` bytes of `name`, and its table. */
static const od_option *find_row(const od_options *tables, size_t count, const char *name, size_t length,
                                 const od_options **table) {
    for (size_t t = 0; t < count; t++)
        for (size_t i = 0; i < tables[t].count; i++) {
            const char *row_name = tables[t].rows[i].name;
            if (row_name && strlen(row_name) == length && strncmp(row_name, name, length) == 0) {
                *table = &tables[t];
                return &tables[t].rows[i];
            }
        }
    return NULL;
}

static od_status unknown_flag(const od_options *tables, size_t count, const char *argument, size_t length) {
    char name[NAME_MAX_BYTES];
    name_list list = {.count = 0};
    for (size_t t = 0; t < count; t++)
        add_names(&list, &tables[t]);
    add_name(&list, "help");
    (void)snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1), argument + 2);
    return od_fail(OD_ERR_USAGE, "unknown option --%s; the nearest one is --%s", name, od_nearest(name, list.names));
}

static od_status parse_flag(const od_options *tables, size_t count, int argc, char *const *argv, int *at) {
    const char *argument = argv[*at], *equals = strchr(argument, '='), *value = equals ? equals + 1 : NULL;
    size_t length = (equals ? (size_t)(equals - argument) : strlen(argument)) - 2;
    const od_options *table = NULL;
    char wanted[512];
    const od_option *row = find_row(tables, count, argument + 2, length, &table);
    if (!row)
        return unknown_flag(tables, count, argument, length);
    if (row->kind == OD_OPTION_FLAG && !value)
        value = "true";
    describe(row, wanted, sizeof wanted);
    if (!value && *at + 1 >= argc)
        return od_fail(OD_ERR_USAGE, "--%s: expected %s, found the end of the command", row->name, wanted);
    if (!value)
        value = argv[++*at];
    if (set_argument(row, field_of(table, row), value))
        return OD_OK;
    if (row->kind == OD_OPTION_CHOICE)
        return od_fail(OD_ERR_USAGE, "--%s: expected %s, found '%.100s'; the nearest one is %s", row->name, wanted,
                       value, od_nearest(value, row->choices));
    return od_fail(OD_ERR_USAGE, "--%s: expected %s, found '%.100s'", row->name, wanted, value);
}

od_status od_options_parse(const od_options *tables, size_t tables_count, od_positionals *positionals, int argc,
                           char *const *argv, bool *help) {
    bool flags = true;
    const char *usage = positionals->usage ? positionals->usage : "";
    positionals->count = 0;
    *help = false;
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        if (flags && (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0)) {
            *help = true;
            od_options_help(tables, tables_count, argv[0], positionals);
            return OD_OK;
        }
        if (flags && strcmp(argument, "--") == 0) {
            flags = false;
        } else if (flags && strncmp(argument, "--", 2) == 0) {
            od_status status = parse_flag(tables, tables_count, argc, argv, &i);
            if (status)
                return status;
        } else if (flags && argument[0] == '-' && argument[1] != '\0') {
            return od_fail(OD_ERR_USAGE, "unknown option %.64s; options begin with --", argument);
        } else if (positionals->count >= positionals->max || positionals->count >= OD_MAX_POSITIONALS) {
            return od_fail(OD_ERR_USAGE, "%s: unexpected argument '%.100s'", argv[0], argument);
        } else {
            positionals->values[positionals->count++] = argument;
        }
    }
    if (positionals->count < positionals->min)
        return od_fail(OD_ERR_USAGE, "%s: something is missing; usage: offdiag %s %s", argv[0], argv[0], usage);
    return OD_OK;
}

static void print_row_help(const od_options *t, const od_option *row) {
    char left[NAME_MAX_BYTES + 192], value[128];
    size_t used = (size_t)snprintf(left, sizeof left, "--%s", row->name);
    if (row->kind == OD_OPTION_CHOICE)
        for (size_t i = 0; row->choices[i] && used < sizeof left; i++)
            used += (size_t)snprintf(left + used, sizeof left - used, "%s%s", i ? "|" : " ", row->choices[i]);
    else if (row->value)
        (void)snprintf(left + used, sizeof left - used, " %s", row->value);
    print_value(row, field_of(t, row), value, sizeof value);
    printf("  %-28s%s%s", left, strlen(left) > 28 ? "\n                                " : "  ", row->help);
    if (row->kind != OD_OPTION_FLAG && value[0])
        printf(" [%s]", value);
    printf("\n");
}

void od_options_help(const od_options *tables, size_t tables_count, const char *command, const od_positionals *p) {
    printf("usage: offdiag %s %s\n", command, p->usage ? p->usage : "[options]");
    if (p->about)
        printf("\n%s\n", p->about);
    printf("\n");
    for (size_t t = 0; t < tables_count; t++)
        for (size_t i = 0; i < tables[t].count; i++) {
            if (tables[t].rows[i].kind == OD_OPTION_HEADING)
                printf("\n%s\n", tables[t].rows[i].help);
            else
                print_row_help(&tables[t], &tables[t].rows[i]);
        }
    printf("  %-28s  %s\n", "--help", "this text");
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static void json_key(const char *name, char key[NAME_MAX_BYTES]) {
    size_t i = 0;
    for (; name[i] && i < NAME_MAX_BYTES - 1; i++)
        key[i] = (char)(name[i] == '-' ? '_' : name[i]);
    key[i] = '\0';
}

static const od_option *find_key(const od_options *t, const char *key) {
    char row_key[NAME_MAX_BYTES];
    for (size_t i = 0; i < t->count; i++) {
        if (!t->rows[i].name)
            continue;
        json_key(t->rows[i].name, row_key);
        if (strcmp(row_key, key) == 0)
            return &t->rows[i];
    }
    return NULL;
}

od_status od_options_from_json(const od_options *table, const json_t *object, const char *origin) {
    const char *key;
    json_t *value;
    char wanted[512], found[128];
    if (!json_is_object(object))
        return od_fail(OD_ERR_FORMAT, "%s: expected an object, found %s", origin, od_json_type_name(object));
    json_object_foreach((json_t *)object, key, value) {
        const od_option *row = find_key(table, key);
        if (!row) {
            char nearest[NAME_MAX_BYTES];
            name_list list = {.count = 0};
            add_names(&list, table);
            json_key(list.count ? od_nearest(key, list.names) : "", nearest);
            return od_fail(OD_ERR_FORMAT, "%s: unknown key \"%.64s\"; the nearest one is \"%s\"", origin, key, nearest);
        }
        if (set_json(row, field_of(table, row), value))
            continue;
        describe(row, wanted, sizeof wanted);
        if (json_is_string(value))
            (void)snprintf(found, sizeof found, "\"%.100s\"", json_string_value(value));
        else if (json_is_number(value))
            (void)snprintf(found, sizeof found, "%g", json_number_value(value));
        else
            (void)snprintf(found, sizeof found, "%s", od_json_type_name(value));
        return od_fail(OD_ERR_FORMAT, "%s: \"%s\": expected %s, found %s", origin, key, wanted, found);
    }
    return OD_OK;
}

static json_t *value_to_json(const od_option *row, const void *field) {
    switch (row->kind) {
    case OD_OPTION_FLAG:
        return json_boolean(*(const bool *)field);
    case OD_OPTION_INT:
        return json_integer(*(const int *)field);
    case OD_OPTION_U64:
        return json_integer((json_int_t) * (const uint64_t *)field);
    case OD_OPTION_DOUBLE:
        return json_real(*(const double *)field);
    case OD_OPTION_CHOICE:
        return json_string(row->choices[*(const int *)field]);
    default:
        return json_string(field);
    }
}

od_status od_options_to_json(const od_options *table, json_t *object) {
    char key[NAME_MAX_BYTES];
    for (size_t i = 0; i < table->count; i++) {
        const od_option *row = &table->rows[i];
        if (!row->name)
            continue;
        json_key(row->name, key);
        if (json_object_set_new(object, key, value_to_json(row, field_of(table, row))))
            return od_fail(OD_ERR_ARGUMENT, "\"%s\" cannot be written as JSON", key);
    }
    return OD_OK;
}
