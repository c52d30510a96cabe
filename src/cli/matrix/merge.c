/* Documents: from rows, and from the files of several machines. Files come from anywhere: what is no row is refused. A
 * row that was run in parts (--groups, --kernels) is put together again. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/text.h"
#include "cli/matrix/run.h"
#include "cli/selftest/runner.h"
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
    if (json_object_get(row, "only") && !has(row, "only", JSON_STRING))
        return "only";
    return !has(row, "seconds", JSON_REAL) ? "seconds" : !has(host, "processor", JSON_STRING) ? "host" : NULL;
}

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* ---- parts of a row ---------------------------------------------------------------------------------------------- */

/* The checks that a row holds, as bits: each group and the training in each family, and the times. */
typedef uint64_t checks;

static checks bit_of(int place, od_family family) {
    return (checks)1 << (3 * place + (int)family - OD_FAMILY_REF);
}

/* What follows `name` in a part's words, up to the next space; "" where it is not there. */
static void word_after(char *word, size_t size, const char *part, const char *name) {
    const char *at = strstr(part, name);
    word[0] = '\0';
    if (at)
        (void)snprintf(word, size, "%.*s", (int)strcspn(at + strlen(name), " ;"), at + strlen(name));
}

/* The checks of one run with "--groups A,B --kernels F", either of which may be missing. */
static checks checks_of_part(const char *part, bool gpu) {
    char groups[256], kernels[16];
    checks sum = 0;
    int place = 0;
    word_after(groups, sizeof groups, part, "--groups ");
    word_after(kernels, sizeof kernels, part, "--kernels ");
    const od_family own = gpu ? OD_FAMILY_GPU : OD_FAMILY_CPU;
    for (const od_check_group *g = od_check_groups;; g++, place++) {
        for (od_family f = OD_FAMILY_REF; f <= OD_FAMILY_GPU; f++)
            if (od_list_holds(groups, g->name ? g->name : "training") &&
                (!kernels[0] || strcmp(kernels, od_family_name(f)) == 0))
                sum |= bit_of(place, f);
        if (!g->name)
            break;
    }
    if (od_list_holds(groups, "speed") && (!kernels[0] || strcmp(kernels, od_family_name(own)) == 0))
        sum |= bit_of(place + 1, OD_FAMILY_REF);
    return sum;
}

static bool is_gpu(const json_t *row) {
    return strcmp(text_of(json_object_get(row, "device"), "type"), "gpu") == 0;
}

/* Parts are separated by "; ". */
static checks checks_of(const json_t *row) {
    char part[400];
    checks sum = 0;
    const char *only = text_of(row, "only");
    if (!*only)
        return checks_of_part("", is_gpu(row));
    for (const char *at = only; *at; at += strspn(at, "; ")) {
        const size_t length = strcspn(at, ";");
        (void)snprintf(part, sizeof part, "%.*s", (int)length, at);
        sum |= checks_of_part(part, is_gpu(row));
        at += length;
    }
    return sum;
}

static bool trains(const json_t *row) {
    for (const od_setting *s = od_settings; s->name; s++)
        if (strcmp(s->name, text_of(row, "settings")) == 0)
            return s->training;
    return true;
}

/* What a row of this device and these settings holds when it is whole. */
static checks all_checks(const json_t *row) {
    const checks all = checks_of_part("", is_gpu(row));
    return trains(row) ? all : all & ~checks_of_part("--groups training,speed", is_gpu(row));
}

/* What was left out: operations, and of a row that can't afford them training and times. */
static json_int_t count_skipped(const json_t *row) {
    json_int_t sum = !trains(row);
    size_t i;
    const json_t *operation;
    json_array_foreach(json_object_get(row, "operations"), i, operation) {
        sum += json_object_get(operation, "skipped") != NULL;
    }
    return sum;
}

/* Add part b to a; they have no check in common. */
static od_status join(json_t *a, json_t *b) {
    static const char *const arrays[] = {"operations", "failures", "stopped", "training"};
    static const char *const numbers[] = {"cases", "failed"};
    int wrong = 0;
    json_t *only = json_sprintf("%s; %s", text_of(a, "only"), text_of(b, "only"));
    const checks times = checks_of_part("--groups speed", is_gpu(a));
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        wrong |= json_array_extend(json_object_get(a, arrays[i]), json_object_get(b, arrays[i]));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        wrong |=
            json_integer_set(json_object_get(a, numbers[i]), json_integer_value(json_object_get(a, numbers[i])) +
                                                                 json_integer_value(json_object_get(b, numbers[i])));
    if (!(checks_of(a) & times)) /* else these are the device's own family's */
        wrong |= json_object_set(a, "speed", json_object_get(b, "speed"));
    wrong |= json_object_set_new(
        a, "seconds",
        json_real(json_number_value(json_object_get(a, "seconds")) + json_number_value(json_object_get(b, "seconds"))));
    if (strcmp(text_of(b, "date"), text_of(a, "date")) > 0)
        wrong |= json_object_set(a, "date", json_object_get(b, "date"));
    wrong |= json_object_set_new(a, "only", only);
    wrong |= json_object_set_new(a, "skipped", json_integer(count_skipped(a)));
    if (!wrong && (all_checks(a) & ~checks_of(a)) == 0)
        wrong = json_object_del(a, "only");
    return wrong ? od_fail(OD_ERR_MEMORY, "no memory for JSON") : OD_OK;
}

/* The same device in the same way on the same kind of machine. */
static bool same_row(const json_t *a, const json_t *b) {
    const json_t *da = json_object_get(a, "device"), *db = json_object_get(b, "device");
    return strcmp(text_of(a, "row"), text_of(b, "row")) == 0 &&
           strcmp(text_of(da, "driver"), text_of(db, "driver")) == 0 &&
           strcmp(text_of(json_object_get(a, "host"), "processor"), text_of(json_object_get(b, "host"), "processor")) ==
               0;
}

static bool are_parts_of_one(const json_t *a, const json_t *b) {
    return json_object_get(a, "only") && json_object_get(b, "only") && !(checks_of(a) & checks_of(b)) &&
           strcmp(text_of(a, "offdiag"), text_of(b, "offdiag")) == 0 &&
           json_is_true(json_object_get(a, "quick")) == json_is_true(json_object_get(b, "quick"));
}

static od_status add_row(json_t *rows, json_t *row) {
    size_t i;
    json_t *old;
    json_array_foreach(rows, i, old) {
        if (!same_row(old, row))
            continue;
        if (are_parts_of_one(old, row))
            return join(old, row);
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
    bool timed = false; /* with --groups speed there is no case */
    size_t i;
    const json_t *row;
    json_array_foreach(json_object_get(document, "devices"), i, row) {
        timed = timed || json_array_size(json_object_get(row, "speed")) > 0;
    }
    if (cases == 0 && !timed)
        return od_fail(OD_ERR_NUMERIC, "matrix: not one case ran");
    return failed ? od_fail(OD_ERR_NUMERIC, "matrix: %lld failures in %lld cases", (long long)failed, (long long)cases)
                  : OD_OK;
}
