#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static od_log_level default_level = OD_LOG_WARN;

/* Whether the comma list `list` has the item `word`. */
static bool list_has(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *at = list; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncmp(at, word, n) == 0 && (at[n] == ',' || at[n] == '\0'))
            return true;
    return false;
}

static od_log_level level_now(const char *list) {
    for (int i = OD_LOG_DEBUG; i >= OD_LOG_ERROR; i--)
        if (list && list_has(list, level_names[i]))
            return (od_log_level)i;
    return default_level;
}

void od_log_set_default(od_log_level level) {
    default_level = level;
}

bool od_log_topic_enabled(const char *topic) {
    const char *list = getenv("OFFDIAG_LOG");
    return list && *list && (list_has(list, topic) || level_now(list) == OD_LOG_DEBUG);
}

/* One write a note, so that notes of threads don't mix within a line. */
static void print_note(const char *what, const char *format, va_list args) {
    char line[4096];
    int at = snprintf(line, sizeof line, "offdiag: %s: ", what);
    int length = vsnprintf(line + at, sizeof line - (size_t)at - 1, format, args);
    at += length < (int)sizeof line - at - 1 ? length : (int)sizeof line - at - 2;
    line[at++] = '\n';
    (void)fwrite(line, 1, (size_t)at, stderr);
}

void od_log(od_log_level level, const char *format, ...) {
    if (level > level_now(getenv("OFFDIAG_LOG")))
        return;
    va_list args;
    va_start(args, format);
    print_note(level == OD_LOG_WARN ? "warning" : level == OD_LOG_INFO ? "note" : level_names[level], format, args);
    va_end(args);
}

void od_log_topic(const char *topic, const char *format, ...) {
    if (!od_log_topic_enabled(topic))
        return;
    va_list args;
    va_start(args, format);
    print_note(topic, format, args);
    va_end(args);
}
