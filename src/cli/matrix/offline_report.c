/* The tables of matrix --offline. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/matrix/offline.h"

static const char *const vendor_names[OD_VENDORS] = {[OD_AMD] = "AMD", [OD_NVIDIA] = "NVIDIA", [OD_INTEL] = "Intel"};

/* ---- the sum of a target ----------------------------------------------------------------------------------------- */

typedef struct target_sum {
    size_t kernels, defaults, spills, stacks, scalar_spills; /* spills and the rest: of how many default kernels */
    long local_bytes, least_waves, least_simd, most_waves;
    const od_offline_row *worst; /* the most registers */
} target_sum;

static target_sum sum_of(const od_offline *r, const od_offline_target *t) {
    target_sum s = {.least_waves = -1, .least_simd = -1};
    for (size_t i = 0; i < t->row_count; i++) {
        const od_offline_row *row = &r->rows[t->first_row + i];
        const od_usage *u = &row->usage;
        s.kernels++;
        s.defaults += row->kernel->by_default;
        if (!row->compiled || !row->kernel->by_default)
            continue;
        s.spills += u->spill_bytes > 0;
        s.stacks += u->stack_bytes > 0;
        s.scalar_spills += u->scalar_spills > 0;
        const long local = u->local_bytes + (long)row->kernel->local_bytes;
        s.local_bytes = local > s.local_bytes ? local : s.local_bytes;
        s.most_waves = u->most_waves;
        if (s.least_waves < 0 || u->waves < s.least_waves)
            s.least_waves = u->waves;
        if (s.least_simd < 0 || u->simd < s.least_simd)
            s.least_simd = u->simd;
        if (!s.worst || u->registers > s.worst->usage.registers)
            s.worst = row;
    }
    return s;
}

static void print_worst(FILE *f, const target_sum *s) {
    if (s->worst)
        (void)fprintf(f, "%ld (%s)", s->worst->usage.registers, s->worst->kernel->name);
    else
        (void)fprintf(f, "-");
}

static void print_summary(FILE *f, const od_offline *r, bool markdown) {
    if (markdown)
        (void)fprintf(f,
                      "| target | kernels | most registers | spills | arrays in memory | local memory | fewest waves | "
                      "narrowest SIMD | failures |\n|---|---|---|---|---|---|---|---|---|\n");
    else
        (void)fprintf(f, "%-8s %8s %8s %-28s %6s %6s %7s %7s %5s %9s %8s\n", "target", "kernels", "default",
                      "most registers", "spills", "arrays", "local", "waves", "simd", "failures", "seconds");
    for (size_t i = 0; i < r->target_count; i++) {
        const od_offline_target *t = &r->targets[i];
        const target_sum s = sum_of(r, t);
        char worst[128], waves[40];
        FILE *w = fmemopen(worst, sizeof worst, "w");
        if (w) {
            print_worst(w, &s);
            (void)fclose(w);
        }
        worst[sizeof worst - 1] = '\0';
        (void)snprintf(waves, sizeof waves, "%ld/%ld", s.least_waves, s.most_waves);
        if (t->missing[0])
            (void)fprintf(f, markdown ? "| %s (%s) | skipped: %s |\n" : "%-8s %s skipped: %s\n", t->target->name,
                          vendor_names[t->target->vendor], t->missing);
        else if (markdown)
            (void)fprintf(f, "| %s (%s: %s) | %zu | %s | %zu | %zu | %ld B | %s | %ld | %zu |\n", t->target->name,
                          vendor_names[t->target->vendor], t->target->device, s.defaults, worst, s.spills, s.stacks,
                          s.local_bytes, waves, s.least_simd, t->failures);
        else
            (void)fprintf(f, "%-8s %8zu %8zu %-28s %6zu %6zu %7ld %7s %5ld %9zu %8.1f\n", t->target->name, s.kernels,
                          s.defaults, worst, s.spills, s.stacks, s.local_bytes, waves, s.least_simd, t->failures,
                          t->seconds);
    }
}

/* ---- a row for each kernel --------------------------------------------------------------------------------------- */

/* "62", "128 s16"; Intel: the SIMD width, since registers are 128 a thread. */
static void cell(char to[40], const od_offline_row *row) {
    const od_usage *u = &row->usage;
    if (!row->compiled) {
        (void)snprintf(to, 40, "FAIL");
        return;
    }
    int used =
        row->target->vendor == OD_INTEL ? snprintf(to, 40, "SIMD%ld", u->simd) : snprintf(to, 40, "%ld", u->registers);
    if (u->spill_bytes > 0 && used > 0 && used < 30)
        used += snprintf(to + used, 40 - (size_t)used, " s%ld", u->spill_bytes);
    if (u->stack_bytes > 0 && used > 0 && used < 30)
        used += snprintf(to + used, 40 - (size_t)used, " a%ld", u->stack_bytes);
    if (row->failure[0] && used > 0 && used < 36)
        (void)snprintf(to + used, 40 - (size_t)used, " !");
}

static int same_kernel(const od_offline_row *a, const od_offline_row *b) {
    int order = strcmp(a->program->program, b->program->program);
    if (!order)
        order = strcmp(a->program->options, b->program->options);
    return order ? order : strcmp(a->kernel->name, b->kernel->name);
}

static int by_kernel(const void *a, const void *b) {
    const od_offline_row *x = *(const od_offline_row *const *)a, *y = *(const od_offline_row *const *)b;
    const int order = same_kernel(x, y);
    return order ? order : (x > y) - (x < y); /* rows lie by target */
}

static void print_kernel(FILE *f, const od_offline *r, const od_offline_row *const *same, size_t count, bool markdown) {
    const od_offline_row *first = same[0];
    const char *tick = first->program->options[0] ? "`" : "";
    long local = 0;
    for (size_t i = 0; i < count; i++) {
        const long bytes = same[i]->usage.local_bytes + (long)same[i]->kernel->local_bytes;
        local = bytes > local ? bytes : local;
    }
    if (markdown)
        (void)fprintf(f, "| %s:%s%s%s%s%s | %zu | %ld |", first->program->program, first->kernel->name,
                      first->kernel->by_default ? "" : " (ref)", tick[0] ? " `" : "", first->program->options, tick,
                      first->kernel->work_group, local);
    else
        (void)fprintf(f, "%s:%s%s  %s\n    group %zu, local %ld:", first->program->program, first->kernel->name,
                      first->kernel->by_default ? "" : " (ref only)", first->program->options,
                      first->kernel->work_group, local);
    for (size_t t = 0; t < r->target_count; t++) {
        char text[40] = "-";
        if (r->targets[t].missing[0])
            continue;
        for (size_t i = 0; i < count; i++)
            if (same[i]->target == r->targets[t].target)
                cell(text, same[i]);
        if (markdown)
            (void)fprintf(f, " %s |", text);
        else
            (void)fprintf(f, " %s %s%s", r->targets[t].target->name, text, t + 1 < r->target_count ? "," : "");
    }
    (void)fprintf(f, "\n");
}

static od_status print_kernels(FILE *f, const od_offline *r, bool markdown) {
    const od_offline_row **rows = malloc((r->row_count + 1) * sizeof(const od_offline_row *));
    if (!rows)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu rows", r->row_count);
    for (size_t i = 0; i < r->row_count; i++)
        rows[i] = &r->rows[i];
    qsort((void *)rows, r->row_count, sizeof(const od_offline_row *), by_kernel);
    if (markdown) {
        size_t columns = 3;
        (void)fprintf(f, "| kernel | group | local |");
        for (size_t t = 0; t < r->target_count; t++)
            if (!r->targets[t].missing[0]) {
                (void)fprintf(f, " %s |", r->targets[t].target->name);
                columns++;
            }
        (void)fprintf(f, "\n|");
        while (columns--)
            (void)fprintf(f, "---|");
        (void)fprintf(f, "\n");
    }
    for (size_t i = 0, n; i < r->row_count; i += n) {
        for (n = 1; i + n < r->row_count && same_kernel(rows[i], rows[i + n]) == 0;)
            n++;
        print_kernel(f, r, rows + i, n, markdown);
    }
    free((void *)rows);
    return OD_OK;
}

static od_status print_tables(FILE *f, const od_offline *r, bool markdown) {
    const char *item = markdown ? "- " : "  ";
    print_summary(f, r, markdown);
    (void)fprintf(f, "\n%zu kernels on %zu targets, %zu failed, %.0f s; %s, two at a time%s%s.\n", r->row_count,
                  r->target_count, r->failures, r->seconds,
                  r->tools.clang_version[0] ? r->tools.clang_version : "no clang", r->groups[0] ? "; only: " : "",
                  r->groups);
    for (size_t i = 0; i < r->row_count; i++)
        if (r->rows[i].failure[0])
            (void)fprintf(f, "%s%s %s:%s '%s': %s\n", item, r->rows[i].target->name, r->rows[i].program->program,
                          r->rows[i].kernel->name, r->rows[i].program->options, r->rows[i].failure);
    (void)fprintf(
        f, "\nA kernel's registers on each target (Intel: the SIMD width); sN: N bytes a work-item spilled; aN: N "
           "bytes of arrays in memory; !: a failure.\n\n");
    return print_kernels(f, r, markdown);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static json_t *number_or_null(long value) {
    return value < 0 ? json_null() : json_integer(value);
}

static json_t *text_or_null(const char *text) {
    return text[0] ? json_string(text) : json_null();
}

static json_t *row_json(const od_offline_row *row) {
    static const od_usage unknown = {"", -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    const od_usage *u = row->compiled ? &row->usage : &unknown;
    return json_pack("{s:s, s:s, s:s, s:s, s:b, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}",
                     "target", row->target->name, "program", row->program->program, "options", row->program->options,
                     "kernel", row->kernel->name, "default", row->kernel->by_default, "work_group",
                     (json_int_t)row->kernel->work_group, "argument_local_bytes", (json_int_t)row->kernel->local_bytes,
                     "registers", number_or_null(u->registers), "scalar_registers", number_or_null(u->scalar_registers),
                     "spill_bytes", number_or_null(u->spill_bytes), "scalar_spills", number_or_null(u->scalar_spills),
                     "stack_bytes", number_or_null(u->stack_bytes), "local_bytes", number_or_null(u->local_bytes),
                     "waves", number_or_null(u->waves), "most_waves", number_or_null(u->most_waves), "simd",
                     number_or_null(u->simd), "max_work_group", number_or_null(u->max_group), "failure",
                     text_or_null(row->failure));
}

static json_t *target_json(const od_offline *r, const od_offline_target *t) {
    const target_sum s = sum_of(r, t);
    return json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:f}", "target", t->target->name,
                     "vendor", vendor_names[t->target->vendor], "device", t->target->device, "skipped",
                     text_or_null(t->missing), "programs", (json_int_t)t->wanted.count, "kernels",
                     (json_int_t)s.kernels, "default_kernels", (json_int_t)s.defaults, "most_registers",
                     number_or_null(s.worst ? s.worst->usage.registers : -1), "spilling_kernels", (json_int_t)s.spills,
                     "kernels_with_stack", (json_int_t)s.stacks, "most_local_bytes", (json_int_t)s.local_bytes,
                     "failures", (json_int_t)t->failures, "seconds", t->seconds);
}

static od_status make_json(const od_offline *r, char **text, size_t *bytes) {
    json_t *targets = json_array(), *kernels = json_array(), *document;
    bool good = targets && kernels;
    for (size_t i = 0; i < r->target_count && good; i++)
        good = !json_array_append_new(targets, target_json(r, &r->targets[i]));
    for (size_t i = 0; i < r->row_count && good; i++)
        good = !json_array_append_new(kernels, row_json(&r->rows[i]));
    document = !good
                   ? NULL
                   : json_pack("{s:s, s:o, s:b, s:s, s:O, s:O, s:I, s:f}", "format", "offdiag-offline-1", "clang",
                               text_or_null(r->tools.clang_version), "quick", r->quick, "groups", r->groups, "targets",
                               targets, "kernels", kernels, "failures", (json_int_t)r->failures, "seconds", r->seconds);
    *text = document ? json_dumps(document, JSON_INDENT(1)) : NULL;
    json_decref(document);
    json_decref(targets);
    json_decref(kernels);
    if (!*text)
        return od_fail(OD_ERR_MEMORY, "no memory for JSON");
    *bytes = strlen(*text);
    return OD_OK;
}

od_status od_offline_report(const od_offline *result, od_matrix_format format, char **text, size_t *bytes) {
    *text = NULL;
    *bytes = 0;
    if (format == OD_MATRIX_JSON)
        return make_json(result, text, bytes);
    FILE *f = open_memstream(text, bytes);
    od_status status = f ? print_tables(f, result, format == OD_MATRIX_MARKDOWN) : OD_OK;
    if (!f || fclose(f))
        status = od_fail(OD_ERR_MEMORY, "no memory for the report");
    return status;
}
