/* One document as text, Markdown, JSON or HTML. A table has a row for each device and setting; what failed follows it.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/matrix/run.h"

enum { COLUMNS = 10, CELL = 200 };

static const char *const titles[COLUMNS] = {"device",   "driver",   "settings",         "cases",        "failed",
                                            "left out", "training", "3x3 conv GFLOP/s", "GEMM GFLOP/s", "time"};

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static double number_of(const json_t *object, const char *key) {
    return json_number_value(json_object_get(object, key));
}

static size_t size_of(const json_t *row, const char *key) {
    return json_array_size(json_object_get(row, key));
}

/* ---- the cells of a row ------------------------------------------------------------------------------------------ */

/* The largest relative difference from the stored curves; or what is wrong. */
static void training_cell(char *to, const json_t *row) {
    size_t i;
    const json_t *run;
    double largest = 0;
    bool failed = false;
    json_array_foreach(json_object_get(row, "training"), i, run) {
        largest = fmax(largest, number_of(run, "largest_difference"));
        failed = failed || json_object_get(run, "failed");
    }
    if (size_of(row, "training") == 0)
        (void)snprintf(to, CELL, "-");
    else
        (void)snprintf(to, CELL, "%s, %.1e", failed ? "FAILED" : "ok", largest);
}

/* The first row of the operation: the largest shape is not the aim, the same shape everywhere is. */
static double rate_of(const json_t *row, const char *op) {
    size_t i;
    const json_t *speed;
    json_array_foreach(json_object_get(row, "speed"), i, speed) {
        if (strcmp(text_of(speed, "op"), op) == 0)
            return number_of(speed, "gflop_per_s");
    }
    return 0;
}

static void rate_cell(char *to, const double *rates, int count) {
    size_t used = 0;
    to[0] = '\0';
    for (int i = 0; i < count; i++)
        used += (size_t)snprintf(to + used, CELL - used, "%s%.*f", i ? " / " : "", rates[i] < 10 ? 1 : 0, rates[i]);
    if (rates[0] <= 0)
        (void)snprintf(to, CELL, "-");
}

static void fill_cells(char cells[COLUMNS][CELL], const json_t *row) {
    const json_t *device = json_object_get(row, "device");
    const double conv[3] = {rate_of(row, "conv_forward"), rate_of(row, "conv_backward_data"),
                            rate_of(row, "conv_backward_weight")};
    const double gemm = rate_of(row, "gemm");
    (void)snprintf(cells[0], CELL, "%s", text_of(device, "name"));
    (void)snprintf(cells[1], CELL, "%.100s %.90s", text_of(device, "platform"), text_of(device, "driver"));
    (void)snprintf(cells[2], CELL, "%s", text_of(row, "settings")[0] ? text_of(row, "settings") : "-");
    (void)snprintf(cells[3], CELL, "%.0f%s%s", number_of(row, "cases"),
                   json_is_true(json_object_get(row, "quick")) ? " (quick)" : "",
                   json_object_get(row, "only") ? " (a part)" : "");
    (void)snprintf(cells[4], CELL, "%.0f", number_of(row, "failed"));
    (void)snprintf(cells[5], CELL, "%.0f", number_of(row, "skipped"));
    training_cell(cells[6], row);
    rate_cell(cells[7], conv, 3);
    rate_cell(cells[8], &gemm, 1);
    (void)snprintf(cells[9], CELL, "%.0f s", number_of(row, "seconds"));
}

/* ---- what failed, and what did not run --------------------------------------------------------------------------- */

/* Calls `line` for each: kind ("failed", "stopped", "left out"), its row, where, and why. */
typedef void (*remark_fn)(FILE *to, const char *kind, const char *row, const char *where, const char *why);

static void tell_row(FILE *to, const json_t *row, remark_fn line) {
    const char *label = text_of(row, "row");
    char where[400];
    size_t i;
    const json_t *item;
    json_array_foreach(json_object_get(row, "failures"), i, item) {
        (void)snprintf(where, sizeof where, "%.60s (%.20s) %.250s", text_of(item, "operation"), text_of(item, "family"),
                       text_of(item, "case"));
        line(to, "failed", label, where, text_of(item, "why"));
    }
    if (number_of(row, "failed") > (double)size_of(row, "failures"))
        line(to, "failed", label, "...", "and more: see the JSON's counts for each operation");
    json_array_foreach(json_object_get(row, "stopped"), i, item) {
        (void)snprintf(where, sizeof where, "%.60s (%.20s) broke off", text_of(item, "group"), text_of(item, "family"));
        line(to, "it said last", label, where, text_of(item, "said")[0] ? text_of(item, "said") : "(nothing)");
    }
    json_array_foreach(json_object_get(row, "operations"), i, item) {
        (void)snprintf(where, sizeof where, "%.60s (%.20s)", text_of(item, "operation"), text_of(item, "family"));
        if (json_object_get(item, "skipped"))
            line(to, "left out", label, where, text_of(item, "skipped"));
    }
    if (json_object_get(row, "left_out"))
        line(to, "left out", label, "the row", text_of(row, "left_out"));
    else if (json_object_get(row, "only"))
        line(to, "left out", label, "the rest", text_of(row, "only"));
    else if (size_of(row, "training") == 0)
        line(to, "left out", label, "training and speed", "too slow here, or the row broke off");
}

static void tell_rows(FILE *to, const json_t *document, remark_fn line) {
    size_t i;
    const json_t *row, *text;
    json_array_foreach(json_object_get(document, "devices"), i, row) {
        tell_row(to, row, line);
    }
    json_array_foreach(json_object_get(document, "notes"), i, text) {
        line(to, "left out", "no row", "", json_string_value(text) ? json_string_value(text) : "");
    }
}

static void sums(char *to, size_t size, const json_t *document) {
    (void)snprintf(to, size, "%zu rows, %.0f cases, %.0f failed, %.0f left out", size_of(document, "devices"),
                   number_of(document, "cases"), number_of(document, "failed"), number_of(document, "skipped"));
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

static void text_remark(FILE *to, const char *kind, const char *row, const char *where, const char *why) {
    (void)fprintf(to, "%s: %s: %s: %s\n", kind, row, where, why);
}

static void write_text(FILE *to, const json_t *document) {
    size_t i;
    const json_t *row;
    char cells[COLUMNS][CELL], line[200];
    json_array_foreach(json_object_get(document, "devices"), i, row) {
        fill_cells(cells, row);
        (void)fprintf(to, "%s\n", text_of(row, "row"));
        (void)fprintf(to, "    %s\n", cells[1]);
        for (int c = 3; c < COLUMNS; c++)
            (void)fprintf(to, "%s%s %s", c == 3 ? "    " : ", ", titles[c], cells[c]);
        (void)fprintf(to, "\n");
    }
    (void)fprintf(to, "\n");
    tell_rows(to, document, text_remark);
    sums(line, sizeof line, document);
    (void)fprintf(to, "%s\n", line);
}

/* ---- Markdown ---------------------------------------------------------------------------------------------------- */

/* On one line, with what would end a cell escaped. */
static void put_markdown(FILE *to, const char *text) {
    for (; *text; text++) {
        if (*text == '|' || *text == '\\' || *text == '<' || *text == '`' || *text == '*')
            (void)fputc('\\', to);
        (void)fputc(*text == '\n' ? ' ' : *text, to);
    }
}

static void markdown_remark(FILE *to, const char *kind, const char *row, const char *where, const char *why) {
    const char *const parts[] = {kind, row, where, why};
    (void)fprintf(to, "- ");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        (void)fprintf(to, "%s", i && parts[i][0] ? ": " : "");
        put_markdown(to, parts[i]);
    }
    (void)fprintf(to, "\n");
}

static void write_markdown(FILE *to, const json_t *document) {
    size_t i;
    const json_t *row;
    char cells[COLUMNS][CELL], line[200];
    for (int c = 0; c < COLUMNS; c++)
        (void)fprintf(to, "| %s ", titles[c]);
    (void)fprintf(to, "|\n");
    for (int c = 0; c < COLUMNS; c++)
        (void)fprintf(to, "|---");
    (void)fprintf(to, "|\n");
    json_array_foreach(json_object_get(document, "devices"), i, row) {
        fill_cells(cells, row);
        for (int c = 0; c < COLUMNS; c++) {
            (void)fprintf(to, "| ");
            put_markdown(to, cells[c]);
            (void)fprintf(to, " ");
        }
        (void)fprintf(to, "|\n");
    }
    sums(line, sizeof line, document);
    (void)fprintf(to, "\n%s.\n\n", line);
    tell_rows(to, document, markdown_remark);
}

/* ---- HTML -------------------------------------------------------------------------------------------------------- */

static void put_html(FILE *to, const char *text) {
    for (; *text; text++)
        if (*text == '&' || *text == '<' || *text == '>' || *text == '"')
            (void)fprintf(to, "&#%d;", *text);
        else
            (void)fputc(*text, to);
}

static void html_remark(FILE *to, const char *kind, const char *row, const char *where, const char *why) {
    (void)fprintf(to, "<li class=\"%s\"><b>%s</b> ", strcmp(kind, "left out") ? "bad" : "out", kind);
    put_html(to, row);
    (void)fprintf(to, ": ");
    put_html(to, where);
    (void)fprintf(to, "<pre>");
    put_html(to, why);
    (void)fprintf(to, "</pre></li>\n");
}

/* Operations down, families across: cases and failures. */
static void html_operations(FILE *to, const json_t *row) {
    size_t i;
    const json_t *item;
    (void)fprintf(to, "<details><summary>");
    put_html(to, text_of(row, "row"));
    (void)fprintf(to, "</summary>\n<table><tr><th>operation<th>kernels<th>cases<th>failed<th>largest error</tr>\n");
    json_array_foreach(json_object_get(row, "operations"), i, item) {
        (void)fprintf(to, "<tr%s><td>", number_of(item, "failed") > 0 ? " class=\"bad\"" : "");
        put_html(to, text_of(item, "operation"));
        (void)fprintf(to, "<td>");
        put_html(to, text_of(item, "family"));
        (void)fprintf(to, "<td>%.0f<td>%.0f<td>%.2g</tr>\n", number_of(item, "cases"), number_of(item, "failed"),
                      number_of(item, "largest_error"));
    }
    (void)fprintf(to, "</table>\n<table><tr><th>timed<th>shape<th>variant<th>ms<th>GFLOP/s</tr>\n");
    json_array_foreach(json_object_get(row, "speed"), i, item) {
        const char *const texts[] = {text_of(item, "op"), text_of(item, "shape"), text_of(item, "variant")};
        (void)fprintf(to, "<tr>");
        for (size_t t = 0; t < 3; t++) {
            (void)fprintf(to, "<td>");
            put_html(to, texts[t]);
        }
        (void)fprintf(to, "<td>%.3f<td>%.1f</tr>\n", 1e3 * number_of(item, "seconds"), number_of(item, "gflop_per_s"));
    }
    (void)fprintf(to, "</table></details>\n");
}

static void write_html(FILE *to, const json_t *document) {
    size_t i;
    const json_t *row;
    char cells[COLUMNS][CELL], line[200];
    (void)fprintf(to, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
                      "<title>offdiag portability matrix</title>\n<style>\n"
                      "body{font:15px/1.4 system-ui,sans-serif;margin:1.5em;color:#222;background:#fff}\n"
                      ".wide{overflow-x:auto}table{border-collapse:collapse;margin:.5em 0}\n"
                      "th,td{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}\n"
                      "th{background:#f0f0f0}.bad{background:#fde0e0}.good{background:#e2f5e2}\n"
                      "pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2em 0;font-size:13px}\n"
                      "summary{cursor:pointer;margin:.3em 0}\n</style></head><body>\n"
                      "<h1>offdiag portability matrix</h1>\n<div class=\"wide\"><table><tr>");
    for (int c = 0; c < COLUMNS; c++)
        (void)fprintf(to, "<th>%s", titles[c]);
    (void)fprintf(to, "</tr>\n");
    json_array_foreach(json_object_get(document, "devices"), i, row) {
        fill_cells(cells, row);
        (void)fprintf(to, "<tr class=\"%s\">", number_of(row, "failed") > 0 ? "bad" : "good");
        for (int c = 0; c < COLUMNS; c++) {
            (void)fprintf(to, "<td>");
            put_html(to, cells[c]);
        }
        (void)fprintf(to, "</tr>\n");
    }
    sums(line, sizeof line, document);
    (void)fprintf(to, "</table></div>\n<p>%s.</p>\n<ul>\n", line);
    tell_rows(to, document, html_remark);
    (void)fprintf(to, "</ul>\n<h2>Operations</h2>\n");
    json_array_foreach(json_object_get(document, "devices"), i, row) {
        html_operations(to, row);
    }
    (void)fprintf(to, "</body></html>\n");
}

od_status od_matrix_report(const od_matrix_options *options, const json_t *document) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    bool bad = !to;
    if (to && options->format == OD_MATRIX_JSON) {
        bad = json_dumpf(document, to, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) != 0;
        (void)fputc('\n', to);
    } else if (to)
        (options->format == OD_MATRIX_HTML       ? write_html
         : options->format == OD_MATRIX_MARKDOWN ? write_markdown
                                                 : write_text)(to, document);
    bad = (to && fclose(to)) || bad;
    od_status status = bad ? od_fail(OD_ERR_MEMORY, "no memory for the report") : od_matrix_write(options, text, bytes);
    free(text);
    return status;
}
