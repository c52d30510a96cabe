#include "train/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

enum { BAR = 24 };

void od_progress_begin(od_progress *p, bool quiet, uint64_t first, uint64_t total, int batch) {
    *p = (od_progress){.quiet = quiet,
                       .terminal = isatty(STDERR_FILENO),
                       .first = first,
                       .total = total,
                       .batch = batch,
                       .started = od_now()};
}

double od_progress_rate(const od_progress *p, uint64_t done) {
    double seconds = od_now() - p->started - p->paused;
    return seconds > 0 ? (double)(done - p->first) * p->batch / seconds : 0;
}

static void format_time(char out[32], double seconds) {
    unsigned s = seconds > 0 && seconds < 1e9 ? (unsigned)(seconds + 0.5) : 0;
    if (s >= 3600)
        snprintf(out, 32, "%uh%02um", s / 3600, s / 60 % 60);
    else
        snprintf(out, 32, "%um%02us", s / 60, s % 60);
}

void od_progress_step(od_progress *p, uint64_t done, uint64_t epoch, double loss) {
    double now = od_now();
    if (p->quiet || !p->terminal || (now - p->drawn < 0.2 && done < p->total))
        return;
    p->drawn = now;
    char bar[BAR + 1], left[32];
    int filled = (int)(BAR * done / p->total);
    for (int i = 0; i < BAR; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[BAR] = 0;
    double rate = od_progress_rate(p, done);
    format_time(left, rate > 0 ? (double)(p->total - done) * p->batch / rate : 0);
    fprintf(stderr, "\r\033[K[%s] step %llu/%llu  epoch %llu  loss %.4f  %.0f images/s  %s left", bar,
            (unsigned long long)done, (unsigned long long)p->total, (unsigned long long)epoch, loss, rate, left);
    fflush(stderr);
}

void od_progress_line(od_progress *p, const char *format, ...) {
    if (p->quiet)
        return;
    if (p->terminal)
        fputs("\r\033[K", stderr);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    fflush(stderr);
}

void od_progress_end(od_progress *p) {
    if (!p->quiet && p->terminal)
        fputs("\r\033[K", stderr);
}
