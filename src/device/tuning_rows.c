/* Rows of the tuning database: as JSON, and the user's own file of them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "device/tuning.h"

enum { MOST_ROWS = 4096, MOST_BYTES = 4 << 20 };

#define FORMAT "offdiag-tuning-1"

static const char *const key_names[] = {"device", "architecture", "vendor"};

/* ---- one row ----------------------------------------------------------------------------------------------------- */

static od_status copy_text(char *to, size_t size, const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    const char *text = json_string_value(value);
    if (!text || !*text || strlen(text) >= size)
        return od_fail(OD_ERR_FORMAT, "\"%s\": expected a string of 1 to %zu characters, found %s", key, size - 1,
                       text ? "another length" : od_json_type_name(value));
    memcpy(to, text, strlen(text) + 1);
    return OD_OK;
}

static od_status read_key(od_tuning_row *row, const json_t *object) {
    row->key = OD_TUNING_ANY;
    for (int k = OD_TUNING_DEVICE; k < OD_TUNING_ANY; k++) {
        if (!json_object_get(object, key_names[k]))
            continue;
        if (row->key != OD_TUNING_ANY)
            return od_fail(OD_ERR_FORMAT, "both \"%s\" and \"%s\"", key_names[row->key], key_names[k]);
        row->key = (od_tuning_key)k;
    }
    return row->key == OD_TUNING_ANY ? OD_OK : copy_text(row->match, sizeof row->match, object, key_names[row->key]);
}

static od_status read_settings(od_tuning_row *row, const json_t *object) {
    json_t *settings = json_object_get(object, "parameters"), *value;
    const char *name;
    if (!json_is_object(settings) || json_object_size(settings) > OD_TUNING_PARAMETERS)
        return od_fail(OD_ERR_FORMAT, "\"parameters\": expected an object of at most %d, found %s",
                       OD_TUNING_PARAMETERS, json_is_object(settings) ? "more" : od_json_type_name(settings));
    json_object_foreach(settings, name, value) {
        struct od_tuning_setting *s = &row->settings[row->count];
        if (strlen(name) >= sizeof s->name)
            return od_fail(OD_ERR_FORMAT, "a parameter's name of %zu characters", strlen(name));
        if (!json_is_integer(value) || json_integer_value(value) < INT32_MIN || json_integer_value(value) > INT32_MAX)
            return od_fail(OD_ERR_FORMAT, "\"%s\": expected an integer of 32 bits, found %s", name,
                           json_is_integer(value) ? "a larger one" : od_json_type_name(value));
        memcpy(s->name, name, strlen(name) + 1);
        s->value = (int)json_integer_value(value);
        row->count++;
    }
    return OD_OK;
}

od_status od_tuning_row_from_json(od_tuning_row *row, const json_t *object) {
    od_status status = OD_OK;
    *row = (od_tuning_row){0};
    if (!json_is_object(object))
        return od_fail(OD_ERR_FORMAT, "expected an object, found %s", od_json_type_name(object));
    if ((status = read_key(row, object)) ||
        (status = copy_text(row->variant, sizeof row->variant, object, "variant")) ||
        (status = copy_text(row->shape, sizeof row->shape, object, "shape")))
        return status;
    row->gain = json_number_value(json_object_get(object, "gain"));
    return read_settings(row, object);
}

json_t *od_tuning_row_to_json(const od_tuning_row *row) {
    json_t *object = json_object(), *settings = json_object();
    int failed = !object || !settings;
    if (!failed && row->key != OD_TUNING_ANY)
        failed = json_object_set_new(object, key_names[row->key], json_string(row->match));
    for (int i = 0; i < row->count && !failed; i++)
        failed = json_object_set_new(settings, row->settings[i].name, json_integer(row->settings[i].value));
    if (!failed)
        failed = json_object_set_new(object, "variant", json_string(row->variant)) ||
                 json_object_set_new(object, "shape", json_string(row->shape)) ||
                 json_object_set(object, "parameters", settings) ||
                 (row->gain > 0 && json_object_set_new(object, "gain", json_real(row->gain)));
    json_decref(settings);
    if (failed) {
        json_decref(object);
        object = NULL;
    }
    return object;
}

/* ---- documents --------------------------------------------------------------------------------------------------- */

od_status od_tuning_rows_parse(const char *text, size_t bytes, const char *origin, od_tuning_row **rows,
                               size_t *count) {
    json_t *document = NULL, *object;
    size_t i;
    *rows = NULL;
    *count = 0;
    od_status status = od_json_parse(text, bytes, origin, &document);
    if (status)
        return status;
    const json_t *list = json_object_get(document, "rows");
    const char *format = json_string_value(json_object_get(document, "format"));
    size_t size = json_array_size(list);
    if (!format || strcmp(format, FORMAT) != 0 || !json_is_array(list) || size > MOST_ROWS) {
        status = od_fail(OD_ERR_FORMAT, "%s: expected format " FORMAT " with at most %d rows, found %.40s", origin,
                         MOST_ROWS, format ? format : "no format");
        goto out;
    }
    if (!(*rows = calloc(size + 1, sizeof **rows))) {
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for %zu rows", origin, size);
        goto out;
    }
    json_array_foreach(list, i, object) {
        if (od_tuning_row_from_json(&(*rows)[*count], object))
            od_log(OD_LOG_WARN, "%s: row %zu is ignored: %s", origin, i, od_error_message());
        else
            ++*count;
    }
out:
    json_decref(document);
    return status;
}

/* ---- the user's own rows ----------------------------------------------------------------------------------------- */

od_status od_tuning_user_path(char **path) {
    char *dir = NULL;
    *path = NULL;
    od_status status = od_data_dir(false, &dir);
    if (!status && !(*path = od_path_join(dir, "tuning.json")))
        status = od_fail(OD_ERR_MEMORY, "no memory for a path");
    free(dir);
    return status;
}

static od_status read_user_rows(od_tuning_row **rows, size_t *count) {
    char *path = NULL, *text = NULL;
    size_t bytes = 0;
    *rows = NULL;
    *count = 0;
    od_status status = od_tuning_user_path(&path);
    if (!status && access(path, F_OK) == 0 && !(status = od_file_read(path, MOST_BYTES, &text, &bytes)))
        status = od_tuning_rows_parse(text, bytes, path, rows, count);
    free(text);
    free(path);
    return status;
}

od_status od_tuning_user_rows(od_tuning_row **rows, size_t *count) {
    od_status status = read_user_rows(rows, count);
    if (!status || status == OD_ERR_MEMORY)
        return status;
    od_log(OD_LOG_WARN, "no tuning rows of this user's: %s", od_error_message());
    return OD_OK;
}

static bool same_place(const od_tuning_row *a, const od_tuning_row *b) {
    return a->key == b->key && strcmp(a->match, b->match) == 0 && strcmp(a->variant, b->variant) == 0 &&
           strcmp(a->shape, b->shape) == 0;
}

static od_status write_rows(const od_tuning_row *rows, size_t count, const od_tuning_row *row) {
    char *path = NULL, *dir = NULL;
    json_t *list = json_array();
    bool failed = !list, written = row->count == 0;
    for (size_t i = 0; i < count && !failed; i++) {
        const od_tuning_row *one = same_place(&rows[i], row) ? row : &rows[i];
        written = written || one == row;
        if (one->count > 0)
            failed = json_array_append_new(list, od_tuning_row_to_json(one)) != 0;
    }
    if (!failed && !written)
        failed = json_array_append_new(list, od_tuning_row_to_json(row)) != 0;
    json_t *document = failed ? NULL : json_pack("{s:s, s:O}", "format", FORMAT, "rows", list);
    od_status status = document ? od_data_dir(true, &dir) : od_fail(OD_ERR_MEMORY, "no memory for tuning results");
    if (!status)
        status = od_tuning_user_path(&path);
    if (!status)
        status = od_json_write_atomic(path, document);
    json_decref(document);
    json_decref(list);
    free(path);
    free(dir);
    return status;
}

od_status od_tuning_user_keep(const od_tuning_row *row) {
    od_tuning_row *rows = NULL;
    size_t count = 0;
    od_status status = read_user_rows(&rows, &count);
    if (status)
        return od_fail_in(status, "nothing is kept, as the rows that are there could not be read: ");
    if (count >= MOST_ROWS)
        status = od_fail(OD_ERR_FORMAT, "the file of tuning results holds %zu rows already", count);
    if (!status)
        status = write_rows(rows, count, row);
    free(rows);
    return status;
}
