#include "base/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

const char *od_json_type_name(const json_t *json) {
    if (!json)
        return "nothing";
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "true or false";
    default:
        return "null";
    }
}

od_status od_json_parse(const char *text, size_t bytes, const char *origin, json_t **object) {
    json_error_t error;
    *object = NULL;
    json_t *json = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!json)
        return od_fail(OD_ERR_FORMAT, "%s: line %d: expected JSON, found an error: %s", origin, error.line, error.text);
    if (!json_is_object(json)) {
        od_status status =
            od_fail(OD_ERR_FORMAT, "%s: line 1: expected a JSON object, found %s", origin, od_json_type_name(json));
        json_decref(json);
        return status;
    }
    *object = json;
    return OD_OK;
}

od_status od_json_read(const char *path, json_t **object) {
    char *text;
    size_t bytes;
    *object = NULL;
    od_status status = od_file_read(path, OD_JSON_MAX_BYTES, &text, &bytes);
    if (status)
        return status;
    status = od_json_parse(text, bytes, path, object);
    free(text);
    return status;
}

od_status od_json_write_atomic(const char *path, const json_t *json) {
    char *text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    if (!text)
        return od_fail(OD_ERR_ARGUMENT, "%s: cannot write this as JSON", path);
    od_part parts[] = {{text, strlen(text)}, {"\n", 1}};
    od_status status = od_file_write_atomic_parts(path, parts, 2);
    free(text);
    return status;
}

od_status od_json_print(const json_t *json) {
    if (json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) || putchar('\n') == EOF || fflush(stdout))
        return od_fail(OD_ERR_IO, "standard output: cannot write: %s", strerror(errno));
    return OD_OK;
}
