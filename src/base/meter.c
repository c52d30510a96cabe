#include "base/meter.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

od_meter od_meter_begin(bool quiet) {
    return (od_meter){.on = !quiet && isatty(STDERR_FILENO)};
}

void od_meter_show(od_meter *meter, bool now, const char *format, ...) {
    struct timespec t;
    if (!meter->on)
        return;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    double seconds = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (!now && seconds - meter->drawn < 0.2)
        return;
    meter->drawn = seconds;
    va_list args;
    va_start(args, format);
    (void)fputs("\r\033[K", stderr);
    (void)vfprintf(stderr, format, args);
    (void)fflush(stderr);
    va_end(args);
}

void od_meter_end(od_meter *meter) {
    if (meter->on)
        (void)fputs("\r\033[K", stderr);
    meter->on = false;
}
