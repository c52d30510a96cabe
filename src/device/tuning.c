/* The rows that apply to a device, and looking them up. */
#include "device/tuning.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/grow.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/text.h"
#include "device/internal.h"

typedef struct ranked_row {
    od_tuning_row row;
    int rank;     /* the lowest is asked first */
    bool ignored; /* it was found wanting, and that was told */
} ranked_row;

enum { MOST_ASKED = 64, RANKS = 2 * (OD_TUNING_ANY + 1) };

struct od_tuning {
    ranked_row *rows; /* by rank, those of one rank in the order of their files */
    size_t count, room;
    const od_tuning_row *forced;
    od_tuning_asked asked[MOST_ASKED];
    size_t asked_count;
};

/* ---- which rows are a device's ----------------------------------------------------------------------------------- */

/* Vendors call themselves differently with each driver. */
static const char *vendor_of(const od_device_info *info) {
    static const char *const names[][2] = {
        {"nvidia", "NVIDIA"},     {"advanced micro devices", "AMD"},
        {"amd", "AMD"},           {"genuineintel", "Intel"},
        {"intel", "Intel"},       {"apple", "Apple"},
        {"qualcomm", "Qualcomm"}, {"arm", "ARM"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (od_contains_nocase(info->vendor, names[i][0]))
            return names[i][1];
    return info->vendor;
}

/* Whether `part` is in `text`, without case, in whole words: "A10" is not in "A100". */
static bool contains_words(const char *text, const char *part) {
    size_t n = strlen(part);
    for (const char *at = strcasestr(text, part); at && n > 0; at = strcasestr(at + 1, part))
        if (!(at > text && isalnum((unsigned char)at[-1]) && isalnum((unsigned char)part[0])) &&
            !(isalnum((unsigned char)at[n]) && isalnum((unsigned char)part[n - 1])))
            return true;
    return false;
}

bool od_tuning_row_matches(const od_tuning_row *row, const od_device_info *info) {
    switch (row->key) {
    case OD_TUNING_DEVICE:
        return contains_words(info->name, row->match);
    case OD_TUNING_ARCHITECTURE:
        return strcasecmp(info->architecture, row->match) == 0;
    case OD_TUNING_VENDOR:
        return strcasecmp(vendor_of(info), row->match) == 0;
    case OD_TUNING_ANY:
        break;
    }
    return true;
}

/* Behind the rows of its rank. False without memory. */
static bool insert(od_tuning *t, const od_tuning_row *row, int rank) {
    ranked_row *longer = od_grow(t->rows, t->count, &t->room, sizeof *longer);
    if (!longer)
        return false;
    t->rows = longer;
    size_t at = t->count++;
    for (; at > 0 && t->rows[at - 1].rank > rank; at--)
        t->rows[at] = t->rows[at - 1];
    t->rows[at] = (ranked_row){.row = *row, .rank = rank};
    return true;
}

static int rank_of(const od_tuning_row *row) {
    return 2 * (int)row->key + (strcmp(row->shape, "*") == 0);
}

static void add_matching(od_tuning *t, const od_device_info *info, const od_tuning_row *rows, size_t count, int rank) {
    for (size_t i = 0; i < count; i++)
        if (od_tuning_row_matches(&rows[i], info) && !insert(t, &rows[i], rank + rank_of(&rows[i])))
            od_log(OD_LOG_WARN, "no memory for tuning rows: some are left out");
}

od_tuning *od_tuning_open(const od_device_info *info) {
    od_tuning *t = calloc(1, sizeof *t);
    const char *variable = getenv("OFFDIAG_TUNING");
    od_tuning_row *rows = NULL;
    size_t count = 0;
    if (!t || (variable && strcmp(variable, "off") == 0))
        return t;
    if (variable && *variable)
        od_log(OD_LOG_WARN, "OFFDIAG_TUNING=%.40s: only \"off\" means something", variable);
    if (!od_tuning_user_rows(&rows, &count))
        add_matching(t, info, rows, count, 0);
    free(rows);
    if (od_tuning_rows_parse(od_tuning_shipped, strlen(od_tuning_shipped), "the shipped tuning rows", &rows, &count))
        od_log(OD_LOG_WARN, "%s", od_error_message());
    else
        add_matching(t, info, rows, count, RANKS);
    free(rows);
    return t;
}

void od_tuning_close(od_tuning *t) {
    if (t)
        free(t->rows);
    free(t);
}

/* ---- looking up -------------------------------------------------------------------------------------------------- */

static int find_parameter(const od_tuning_table *table, const char *name) {
    for (int p = 0; p < table->count; p++)
        if (strcmp(table->parameters[p].name, name) == 0)
            return p;
    return -1;
}

static bool is_allowed(const od_tuning_parameter *p, int value) {
    for (int i = 0; i < p->count; i++)
        if (p->values[i] == value)
            return true;
    return false;
}

static void apply(const od_tuning_row *row, const od_tuning_table *table, int *values) {
    for (int i = 0; i < row->count; i++)
        values[find_parameter(table, row->settings[i].name)] = row->settings[i].value;
}

bool od_tuning_row_valid(const od_tuning_row *row, const od_tuning_table *table, const od_device *device,
                         const int *defaults, char *why, size_t why_size) {
    int values[OD_TUNING_PARAMETERS];
    for (int i = 0; i < row->count; i++) {
        const int p = find_parameter(table, row->settings[i].name);
        if (p < 0 || !is_allowed(&table->parameters[p], row->settings[i].value)) {
            (void)snprintf(why, why_size, p < 0 ? "it has no parameter \"%s\"" : "\"%s\" may not be %d",
                           row->settings[i].name, row->settings[i].value);
            return false;
        }
    }
    if (!device || !table->fits)
        return true;
    memcpy(values, defaults, (size_t)table->count * sizeof *values);
    apply(row, table, values);
    (void)snprintf(why, why_size, "its values don't fit this device together");
    return table->fits(device, values);
}

static void note_asked(od_tuning *t, const od_tuning_table *table, const char *shape, const int *values) {
    for (size_t i = 0; i < t->asked_count; i++)
        if (t->asked[i].table == table && strcmp(t->asked[i].shape, shape) == 0)
            return;
    if (t->asked_count == MOST_ASKED)
        return;
    od_tuning_asked *a = &t->asked[t->asked_count++];
    a->table = table;
    (void)snprintf(a->shape, sizeof a->shape, "%s", shape);
    memcpy(a->defaults, values, (size_t)table->count * sizeof *values);
}

/* Whether the row sets anything: values that the table and the device take. */
static bool use(const od_device *device, const od_tuning_row *row, const od_tuning_table *table, int *values) {
    char why[96] = "";
    if (!od_tuning_row_valid(row, table, device, values, why, sizeof why)) {
        od_log(OD_LOG_WARN, "a tuning row for %s, %s is ignored: %s", row->variant, row->shape, why);
        return false;
    }
    apply(row, table, values);
    return row->count > 0;
}

/* The next row for a variant and a class, not before `from`. */
static ranked_row *find_row(const od_tuning *t, const char *variant, const char *shape, size_t from) {
    for (size_t i = from; i < t->count; i++) {
        ranked_row *r = &t->rows[i];
        if (!r->ignored && strcmp(r->row.variant, variant) == 0 &&
            (strcmp(r->row.shape, shape) == 0 || strcmp(r->row.shape, "*") == 0))
            return r;
    }
    return NULL;
}

bool od_tuning_lookup(const od_device *device, const od_tuning_table *table, const char *shape, int *values) {
    od_tuning *t = device->tuning;
    if (!t)
        return false;
    note_asked(t, table, shape, values);
    if (t->forced && strcmp(t->forced->variant, table->variant) == 0)
        return use(device, t->forced, table, values);
    for (ranked_row *r = find_row(t, table->variant, shape, 0); r;
         r = find_row(t, table->variant, shape, (size_t)(r - t->rows) + 1)) {
        if (use(device, &r->row, table, values)) {
            od_log_topic("tuning", "%s, %s: a row for %s", table->variant, shape,
                         r->row.match[0] ? r->row.match : "any device");
            return true;
        }
        r->ignored = true;
    }
    return false;
}

bool od_tuning_reject(const od_device *device, const od_tuning_table *table, const char *shape) {
    od_tuning *t = device->tuning;
    const bool forced = t && t->forced && strcmp(t->forced->variant, table->variant) == 0;
    ranked_row *r = t && !forced ? find_row(t, table->variant, shape, 0) : NULL;
    if (!r)
        return false;
    od_log(OD_LOG_WARN, "a tuning row for %s, %s is ignored: %s", table->variant, r->row.shape, od_error_message());
    r->ignored = true;
    return true;
}

/* ---- what is in force -------------------------------------------------------------------------------------------- */

/* One that stands before it for the same variant and shape hides a row. */
static bool is_hidden(const od_tuning *t, size_t index) {
    for (size_t i = 0; i < index; i++)
        if (strcmp(t->rows[i].row.variant, t->rows[index].row.variant) == 0 &&
            strcmp(t->rows[i].row.shape, t->rows[index].row.shape) == 0)
            return true;
    return false;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* variant, shape and settings, for the fingerprint: whom a row matches is no matter. */
static char *text_of(const od_tuning_row *row) {
    od_tuning_row bare = *row;
    bare.key = OD_TUNING_ANY;
    bare.gain = 0;
    json_t *object = od_tuning_row_to_json(&bare);
    char *text = object ? json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    json_decref(object);
    return text;
}

void od_tuning_fingerprint(const od_device *device, char out[9]) {
    const od_tuning *t = device->tuning;
    char digest[OD_SHA256_TEXT];
    size_t count = 0;
    (void)snprintf(out, 9, "none");
    char **texts = t && t->count ? calloc(t->count, sizeof *texts) : NULL;
    if (!texts)
        return;
    for (size_t i = 0; i < t->count; i++)
        if (!is_hidden(t, i) && (texts[count] = text_of(&t->rows[i].row)))
            count++;
    qsort(texts, count, sizeof *texts, by_text);
    od_sha256_strings(digest, (const char *const *)texts, count);
    (void)snprintf(out, 9, "%.8s", digest);
    for (size_t i = 0; i < count; i++)
        free(texts[i]);
    free(texts);
}

/* ---- for the search ---------------------------------------------------------------------------------------------- */

void od_tuning_clear(od_device *device) {
    if (device->tuning)
        device->tuning->count = 0;
}

od_status od_tuning_add(od_device *device, const od_tuning_row *row) {
    if (!device->tuning || !insert(device->tuning, row, -1))
        return od_fail(OD_ERR_MEMORY, "no memory for a tuning row");
    return OD_OK;
}

void od_tuning_force(od_device *device, const od_tuning_row *row) {
    if (device->tuning)
        device->tuning->forced = row;
}

size_t od_tuning_asked_list(const od_device *device, const od_tuning_asked **list) {
    *list = device->tuning ? device->tuning->asked : NULL;
    return device->tuning ? device->tuning->asked_count : 0;
}

void od_tuning_forget(od_device *device) {
    if (device->tuning)
        device->tuning->asked_count = 0;
}
