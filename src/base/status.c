#include "offdiag/status.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHORT = 1024, LONGEST = 64 * 1024 }; /* build logs need the latter */

/* A message lives in `fixed` unless it is longer; without memory for more it is cut. */
static _Thread_local struct {
    char fixed[SHORT];
    char *grown;
} message;

static pthread_key_t grown_key; /* frees `grown` when a thread ends */
static pthread_once_t grown_once = PTHREAD_ONCE_INIT;

static void make_key(void) {
    (void)pthread_key_create(&grown_key, free);
}

static void set_grown(char *text) {
    (void)pthread_once(&grown_once, make_key);
    free(message.grown);
    message.grown = text;
    (void)pthread_setspecific(grown_key, text);
}

static const char *const names[] = {
    [OD_OK] = "success",
    [OD_ERR_USAGE] = "wrong usage",
    [OD_ERR_ARGUMENT] = "wrong argument",
    [OD_ERR_IO] = "input or output failed",
    [OD_ERR_FORMAT] = "bad file",
    [OD_ERR_MEMORY] = "out of memory",
    [OD_ERR_DEVICE_MEMORY] = "out of device memory",
    [OD_ERR_DEVICE] = "device error",
    [OD_ERR_BUILD] = "kernel build failed",
    [OD_ERR_NO_DEVICE] = "no such device",
    [OD_ERR_UNSUPPORTED] = "not supported",
    [OD_ERR_NUMERIC] = "numeric failure",
    [OD_ERR_INTERRUPTED] = "interrupted",
    [OD_ERR_PEER] = "another device failed",
};

const char *od_status_name(od_status status) {
    size_t i = (size_t)status;
    return i < sizeof names / sizeof *names ? names[i] : "unknown status";
}

const char *od_error_message(void) {
    return message.grown ? message.grown : message.fixed;
}

/* `prefix` and `rest` may point into the present message. */
static void set_message(const char *prefix, const char *rest) {
    size_t a = strlen(prefix), b = strlen(rest);
    if (a >= LONGEST)
        a = LONGEST - 1;
    if (b >= LONGEST - a)
        b = LONGEST - a - 1;
    char *text = malloc(a + b + 1);
    if (!text) {
        char cut[SHORT];
        (void)snprintf(cut, sizeof cut, "%s%s", prefix, rest);
        set_grown(NULL);
        memcpy(message.fixed, cut, sizeof cut);
        return;
    }
    memcpy(text, prefix, a);
    memcpy(text + a, rest, b);
    text[a + b] = '\0';
    while (a + b > 0 && text[a + b - 1] == '\n')
        text[--b + a] = '\0';
    if (a + b < SHORT) {
        memcpy(message.fixed, text, a + b + 1);
        free(text);
        text = NULL;
    }
    set_grown(text);
}

/* The formatted text: in `fixed`, or malloc'd where it is longer. */
static char *format_text(char fixed[SHORT], const char *format, va_list args) {
    va_list again;
    va_copy(again, args);
    int length = vsnprintf(fixed, SHORT, format, args);
    char *text = fixed;
    if (length >= SHORT) {
        size_t size = length < LONGEST ? (size_t)length + 1 : LONGEST;
        char *longer = malloc(size);
        if (longer) {
            (void)vsnprintf(longer, size, format, again);
            text = longer;
        }
    }
    va_end(again);
    return text;
}

od_status od_fail(od_status status, const char *format, ...) {
    char fixed[SHORT];
    va_list args;
    va_start(args, format);
    char *text = format_text(fixed, format, args);
    va_end(args);
    set_message(text, "");
    if (text != fixed)
        free(text);
    return status;
}

od_status od_fail_in(od_status status, const char *format, ...) {
    char fixed[SHORT];
    va_list args;
    va_start(args, format);
    char *text = format_text(fixed, format, args);
    va_end(args);
    set_message(text, od_error_message());
    if (text != fixed)
        free(text);
    return status;
}
