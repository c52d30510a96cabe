/* Thin helpers over jansson: files, with messages that name file, line, what was expected and what was found. */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <jansson.h>

#include "offdiag/status.h"

enum { OD_JSON_MAX_BYTES = 16 << 20 };

/* An object from a file of at most OD_JSON_MAX_BYTES; duplicate keys are refused. Release with json_decref. */
od_status od_json_read(const char *path, json_t **object);
od_status od_json_parse(const char *text, size_t bytes, const char *origin, json_t **object);

od_status od_json_write_atomic(const char *path, const json_t *json); /* indented */
od_status od_json_print(const json_t *json);                          /* one document on stdout */

/* "an integer", "a string", ...: what was found, for messages. */
const char *od_json_type_name(const json_t *json);

#endif
