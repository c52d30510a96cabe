/* Documents: from rows, and from the files of several machines. Files come from anywhere: what is no row is refused. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/matrix/run.h"
#include "od_config.h"

static json_int_t sum_of(const json_t *rows, const char *key) {
    json_int_t sum = 0;
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row) {
        sum += json_integer_value(json_object_get(row, key));
    }
    return sum;
}

od_status od_matrix_document(json_t *rows, json_t **document) {
    *document = json_pack("{s:s, s:o, s:I, s:I, s:I}", "offdiag", OD_VERSION, "devices", rows, "cases",
                          sum_of(rows, "cases"), "failed", sum_of(rows, "failed"), "skipped", sum_of(rows, "skipped"));
    return *document ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for JSON");
}

/* ---- merging ----------------------------------------------------------------------------------------------------- */

/* The key's value must be there and of this type, or (optional) not there at all. */
static bool has(const json_t *object, const char *key, json_type type) {
    const json_t *value = json_object_get(object, key);
    return value && (json_typeof(value) == type || (type == JSON_REAL && json_is_number(value)));
}

static bool all_objects(const json_t *array) {
    size_t i;
    const json_t *item;
    json_array_foreach(array, i, item) {
        if (!json_is_object(item))
            return false;
    }
    return true;
}

/* Why it is no row of a matrix; NULL if it is one. */
static const char *wrong_key(const json_t *row) {
    static const char *const arrays[] = {"operations", "failures", "stopped", "training", "speed"};
    static const char *const numbers[] = {"cases", "failed", "skipped"};
    static const char *const texts[] = {"row", "settings", "date", "offdiag"};
    static const char *const about[] = {"name", "platform", "driver", "type", "opencl"};
    const json_t *device = json_object_get(row, "device"), *host = json_object_get(row, "host");
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!has(row, texts[i], JSON_STRING))
            return texts[i];
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!has(row, numbers[i], JSON_INTEGER) || json_integer_value(json_object_get(row, numbers[i])) < 0)
            return numbers[i];
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        if (!has(row, arrays[i], JSON_ARRAY) || !all_objects(json_object_get(row, arrays[i])))
            return arrays[i];
    for (size_t i = 0; i < sizeof about / sizeof *about; i++)
        if (!has(device, about[i], JSON_STRING))
            return about[i];
    return !has(row, "seconds", JSON_REAL) ? "seconds" : !has(host, "processor", JSON_STRING) ? "host" : NULL;
}

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* The same device in the same way on the same kind of machine. */
static bool same_row(const json_t *a, const json_t *b) {
    const json_t *da = json_object_get(a, "device"), *db = json_object_get(b, "device");
    return strcmp(text_of(a, "row"), text_of(b, "row")) == 0 &&
           strcmp(text_of(da, "driver"), text_of(db, "driver")) == 0 &&
           strcmp(text_of(json_object_get(a, "host"), "processor"), text_of(json_object_get(b, "host"), "processor")) ==
               0;
}

static od_status add_row(json_t *rows, json_t *row) {
    size_t i;
    const json_t *old;
    json_array_foreach(rows, i, old) {
        if (!same_row(old, row))
            continue;
        if (strcmp(text_of(row, "date"), text_of(old, "date")) >= 0 && json_array_set(rows, i, row))
            return od_fail(OD_ERR_MEMORY, "no memory for JSON");
        return OD_OK;
    }
    return json_array_append(rows, row) ? od_fail(OD_ERR_MEMORY, "no memory for JSON") : OD_OK;
}

static od_status add_file(json_t *rows, const char *path) {
    json_t *file = NULL, *row;
    size_t i;
    od_status status = od_json_read(path, &file);
    if (status)
        return status;
    const json_t *devices = json_object_get(file, "devices");
    if (!json_is_array(devices))
        status =
            od_fail(OD_ERR_FORMAT, "%s: no result of `offdiag matrix --json`: expected an array \"devices\"", path);
    json_array_foreach(devices, i, row) {
        const char *key = status ? NULL : wrong_key(row);
        if (key)
            status = od_fail(OD_ERR_FORMAT, "%s: device %zu: \"%s\" is missing or not what it should be", path, i, key);
        if (!status)
            status = add_row(rows, row);
    }
    json_decref(file);
    return status;
}

od_status od_matrix_merge(const char *const *paths, int count, json_t **document) {
    json_t *rows = json_array();
    od_status status = rows ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for JSON");
    for (int i = 0; i < count && !status; i++)
        status = add_file(rows, paths[i]);
    if (!status)
        return od_matrix_document(rows, document);
    json_decref(rows);
    return status;
}

od_status od_matrix_verdict(const json_t *document) {
    const json_int_t failed = json_integer_value(json_object_get(document, "failed"));
    const json_int_t cases = json_integer_value(json_object_get(document, "cases"));
    if (cases == 0)
        return od_fail(OD_ERR_NUMERIC, "matrix: not one case ran");
    return failed ? od_fail(OD_ERR_NUMERIC, "matrix: %lld failures in %lld cases", (long long)failed, (long long)cases)
                  : OD_OK;
}
