/* The rows of this machine: the devices of each setting, as a child process lists them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/file.h"
#include "base/text.h"
#include "cli/matrix/run.h"

enum { LISTING_S = 60, LISTING_BYTES = 1 << 20 };

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* ---- listing ----------------------------------------------------------------------------------------------------- */

typedef struct listing {
    char text[LISTING_BYTES];
    size_t used;
} listing;

static void add_line(void *to, char *line) {
    listing *l = to;
    size_t bytes = strlen(line);
    if (l->used + bytes + 2 > sizeof l->text)
        return;
    memcpy(l->text + l->used, line, bytes);
    l->used += bytes;
    l->text[l->used++] = '\n';
    l->text[l->used] = '\0';
}

static bool is_here(const od_setting *s) {
    char *drivers = NULL;
    if (!s->needs)
        return true;
    if (od_matrix_drivers(&drivers))
        return false;
    char *path = od_path_join(drivers, s->needs);
    const bool found = path && access(path, R_OK) == 0;
    free(path);
    free(drivers);
    return found;
}

static bool is_known(const od_matrix_rows *rows, const json_t *device) {
    for (size_t i = 0; i < rows->count; i++)
        if (strcmp(rows->rows[i].name, text_of(device, "name")) == 0 &&
            strcmp(rows->rows[i].platform, text_of(device, "platform")) == 0)
            return true;
    return false;
}

static od_status add_row(od_matrix_rows *rows, const od_setting *s, json_t *device) {
    od_matrix_row *more = realloc(rows->rows, (rows->count + 1) * sizeof *more);
    if (!more)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu rows", rows->count + 1);
    rows->rows = more;
    od_matrix_row *row = &more[rows->count++];
    *row = (od_matrix_row){.setting = s, .device = json_incref(device)};
    row->id = text_of(device, "id");
    row->name = text_of(device, "name");
    row->platform = text_of(device, "platform");
    row->driver = text_of(device, "driver");
    (void)snprintf(row->label, sizeof row->label, "%s (%s)%s%s", row->name, row->platform, s->name[0] ? ", " : "",
                   s->name);
    return OD_OK;
}

static od_status note(od_matrix_rows *rows, const char *what, const char *why) {
    json_t *text = json_sprintf("%s: %s", what, why);
    return text && json_array_append_new(rows->notes, text) == 0 ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for JSON");
}

static od_status add_devices(od_matrix_rows *rows, const od_setting *s, const json_t *listed) {
    od_status status = OD_OK;
    size_t i;
    json_t *device;
    json_array_foreach(json_object_get(listed, "devices"), i, device) {
        if (status || !od_contains_nocase(text_of(device, "platform"), s->platform ? s->platform : "") ||
            (s->finds && is_known(rows, device)))
            continue;
        if (json_is_true(json_object_get(device, "usable")))
            status = add_row(rows, s, device);
        else if (!s->name[0])
            status = note(rows, text_of(device, "name"), text_of(device, "note"));
    }
    return status;
}

static od_status list_setting(const od_matrix_options *o, const od_setting *s, od_matrix_rows *rows) {
    listing *l = calloc(1, sizeof *l);
    od_child child = {.setting = s,
                      .words = {o->program, "devices", "--json"},
                      .timeout = o->timeout < LISTING_S ? o->timeout : LISTING_S,
                      .on_line = add_line,
                      .listener = l};
    if (!l)
        return od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
    od_status status = od_child_run(&child);
    json_t *listed = status ? NULL : json_loadb(l->text, l->used, 0, NULL);
    const bool no_runner = s->runner[0] && child.code == 127;
    if (!status && listed)
        status = add_devices(rows, s, listed);
    else if (!status && !no_runner) {
        char how[160], outcome[OD_CHILD_SAID + 200];
        od_child_outcome(&child, how, sizeof how);
        (void)snprintf(outcome, sizeof outcome, "%s; it said last: %s", how, child.said);
        status = note(rows, s->name[0] ? s->name : "the list of devices", outcome);
    }
    json_decref(listed);
    free(l);
    return status;
}

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

static bool matches(const od_matrix_row *row, const char *spec) {
    const bool plain = !row->setting->name[0];
    if (strcasecmp(spec, "auto") == 0)
        return plain && json_is_true(json_object_get(row->device, "auto"));
    if (strcasecmp(spec, "gpu") == 0 || strcasecmp(spec, "cpu") == 0)
        return plain && strcasecmp(text_of(row->device, "type"), spec) == 0;
    if (strspn(spec, "0123456789:") == strlen(spec) && strchr(spec, ':'))
        return plain && strcmp(row->id, spec) == 0;
    return od_contains_nocase(row->label, spec);
}

static od_status no_such_row(const od_matrix_rows *rows, const char *spec) {
    char lines[4096] = "";
    size_t used = 0;
    for (size_t i = 0; i < rows->count && used < sizeof lines; i++)
        used +=
            (size_t)snprintf(lines + used, sizeof lines - used, "\n  %-5s %s", rows->rows[i].id, rows->rows[i].label);
    return od_fail(OD_ERR_NO_DEVICE, "no row of this machine matches '%.200s'; there are:%s", spec, lines);
}

static void drop_row(od_matrix_rows *rows, size_t i) {
    json_decref(rows->rows[i].device);
    memmove(&rows->rows[i], &rows->rows[i + 1], (rows->count - i - 1) * sizeof *rows->rows);
    rows->count--;
}

static od_status choose(od_matrix_rows *rows, const char *specs) {
    char text[sizeof((od_matrix_options *)0)->device], *rest = NULL;
    bool *keep = calloc(rows->count + 1, sizeof *keep);
    if (!keep)
        return od_fail(OD_ERR_MEMORY, "no memory to choose among %zu rows", rows->count);
    (void)snprintf(text, sizeof text, "%s", specs);
    od_status status = OD_OK;
    for (char *spec = strtok_r(text, ",", &rest); spec && !status; spec = strtok_r(NULL, ",", &rest)) {
        bool found = false;
        for (size_t i = 0; i < rows->count; i++)
            if (matches(&rows->rows[i], spec))
                found = keep[i] = true;
        if (!found)
            status = no_such_row(rows, spec);
    }
    for (size_t i = rows->count; i-- > 0 && !status;)
        if (!keep[i])
            drop_row(rows, i);
    free(keep);
    return status;
}

od_status od_matrix_rows_find(const od_matrix_options *options, od_matrix_rows *out) {
    *out = (od_matrix_rows){.notes = json_array()};
    od_status status = out->notes ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for JSON");
    for (const od_setting *s = od_settings; s->name && !status; s++)
        if (is_here(s))
            status = list_setting(options, s, out);
    if (status)
        return status;
    if (out->count == 0) {
        const char *why = json_string_value(json_array_get(out->notes, 0));
        return od_fail(OD_ERR_NO_DEVICE, "there is no device to test; `offdiag devices` says what to install%s%s",
                       why ? "\n  " : "", why ? why : "");
    }
    return options->device[0] ? choose(out, options->device) : OD_OK;
}

void od_matrix_rows_free(od_matrix_rows *rows) {
    while (rows->count > 0)
        drop_row(rows, rows->count - 1);
    free(rows->rows);
    json_decref(rows->notes);
    *rows = (od_matrix_rows){0};
}
