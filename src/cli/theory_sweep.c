/* offdiag theory sweep: a heat map of the share of seeds that learn both. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/text.h"
#include "cli/page.h"
#include "cli/theory.h"

enum { VALUES_MAX = 24 };

typedef struct axis {
    const char *name;
    int which, count;
    double values[VALUES_MAX];
} axis;

/* The parameters, and the values they take where none are given. */
static const char *const names[] = {"eta-ratio", "strength-ratio", "noise", "dimension", NULL};
static const char *const usual[] = {"0.01,0.03,0.1,0.3,1,3", "1.1,1.25,1.4,1.6,2", "0.5,0.75,1,1.25,1.5",
                                    "16,32,64,128,256"};

static od_status parse_axis(const char *flag, const char *text, axis *a) {
    char name[64];
    const char *equals = strchr(text, '=');
    snprintf(name, sizeof name, "%.*s", equals ? (int)(equals - text) : 63, text);
    for (a->which = 0; names[a->which] && strcmp(names[a->which], name) != 0; a->which++)
        ;
    if (!names[a->which])
        return od_fail(OD_ERR_USAGE,
                       "--%s: expected eta-ratio, strength-ratio, noise or dimension, found '%s'; the nearest "
                       "one is %s",
                       flag, name, od_nearest(name, names));
    a->name = names[a->which];
    a->count = theory_numbers(equals ? equals + 1 : usual[a->which], a->values, VALUES_MAX);
    if (!a->count)
        return od_fail(OD_ERR_USAGE, "--%s %s: expected 1 to %d numbers with commas, found '%.100s'", flag, a->name,
                       VALUES_MAX, equals ? equals + 1 : "");
    return OD_OK;
}

/* base is as it came from the flags: what depends on others is chosen anew by od_theory_check. */
static od_status apply(od_theory_config *c, const axis *a, double value) {
    if (!(value > 0) && strcmp(a->name, "noise") != 0)
        return od_fail(OD_ERR_USAGE, "%s %g: a positive number is expected", a->name, value);
    switch (a->which) {
    case 0:
        c->head_ratio = value;
        c->eta_head = 0;
        return OD_OK;
    case 1:
        if (c->features != 2)
            return od_fail(OD_ERR_USAGE, "strength-ratio: of two features, not %d", c->features);
        c->strength[1] = c->strength[0] / value;
        return value >= 1 ? OD_OK
                          : od_fail(OD_ERR_USAGE, "strength-ratio %g: the first is the strong one, from 1", value);
    case 2:
        c->noise = value;
        return value >= 0 ? OD_OK : od_fail(OD_ERR_USAGE, "noise %g: not negative", value);
    default:
        c->dimension = (int)fmin(value, 1 << 20);
        return value == c->dimension ? OD_OK : od_fail(OD_ERR_USAGE, "dimension %g: an integer up to 2^20", value);
    }
}

typedef struct map {
    axis x, y;
    od_theory_config base;
    int both[VALUES_MAX][VALUES_MAX]; /* (y, x) */
    double seconds;
} map;

static od_status cell_config(const map *m, int y, int x, od_theory_config *c) {
    *c = m->base;
    od_status status = apply(c, &m->x, m->x.values[x]);
    if (!status)
        status = apply(c, &m->y, m->y.values[y]);
    return status ? status : od_theory_check(c);
}

static od_status fill(map *m) {
    bool terminal = isatty(STDERR_FILENO);
    od_theory_config c;
    od_status status = OD_OK;
    for (int y = 0; y < m->y.count && !status; y++) /* a mistake shows before the work begins */
        for (int x = 0; x < m->x.count && !status; x++)
            status = cell_config(m, y, x, &c);
    for (int i = 0; i < m->x.count * m->y.count && !status; i++) {
        od_theory_run run = {0};
        int y = i / m->x.count, x = i % m->x.count;
        if (terminal)
            (void)fprintf(stderr, "\rcell %d of %d", i + 1, m->x.count * m->y.count);
        if ((status = cell_config(m, y, x, &c)) || (status = od_theory_train(&c, NULL, false, &run)))
            break;
        m->both[y][x] = theory_count(&run, OD_THEORY_BOTH);
        m->seconds += run.seconds;
        od_theory_run_free(&run);
    }
    if (terminal)
        (void)fprintf(stderr, "\r%30s\r", "");
    return status;
}

static void print_map(const map *m) {
    static const char *const shades[] = {" ", "\u2591", "\u2592", "\u2593", "\u2588"};
    char variant[64];
    theory_variant(&m->base, variant, sizeof variant);
    printf("Share of %d seeds that learn both features, head %s, %" PRIu64 " steps\n\n%s (down), %s (across)\n%9s",
           m->base.seeds, variant, m->base.steps, m->y.name, m->x.name, "");
    for (int x = 0; x < m->x.count; x++)
        printf("  %6.4g  ", m->x.values[x]);
    printf("\n");
    for (int y = 0; y < m->y.count; y++) {
        printf("%8.4g ", m->y.values[y]);
        for (int x = 0; x < m->x.count; x++) {
            double share = (double)m->both[y][x] / m->base.seeds;
            const char *shade = shades[(int)(4 * share + 0.5)];
            printf("  %s%s %.2f ", shade, shade, share);
        }
        printf("\n");
    }
    printf("\n%.1f s; 95 %% interval of a share of 0.5: +-%.2f\n", m->seconds, 0.98 / sqrt(m->base.seeds + 3.84));
}

static json_t *axis_json(const axis *a) {
    json_t *values = json_array();
    for (int i = 0; i < a->count; i++)
        json_array_append_new(values, json_real(a->values[i]));
    return json_pack("{s:s, s:o}", "name", a->name, "values", values);
}

static json_t *map_json(const map *m) {
    json_t *rows = json_array();
    char variant[64];
    theory_variant(&m->base, variant, sizeof variant);
    for (int y = 0; y < m->y.count; y++)
        for (int x = 0; x < m->x.count; x++) {
            double low, high;
            od_theory_interval(m->both[y][x], m->base.seeds, &low, &high);
            json_array_append_new(rows, json_pack("{s:f, s:f, s:i, s:f, s:[f,f]}", m->x.name, m->x.values[x], m->y.name,
                                                  m->y.values[y], "both_learned", m->both[y][x], "both_share",
                                                  (double)m->both[y][x] / m->base.seeds, "both_interval", low, high));
        }
    return json_pack("{s:s, s:s, s:i, s:o, s:o, s:o, s:f, s:o}", "kind", "sweep", "variant", variant, "seeds",
                     m->base.seeds, "x", axis_json(&m->x), "y", axis_json(&m->y), "config",
                     theory_config_json(&m->base), "seconds", m->seconds, "rows", rows);
}

od_status theory_sweep(const od_theory_config *base, const theory_sweep_args *args) {
    map *m = calloc(1, sizeof *m);
    if (!m)
        return od_fail(OD_ERR_MEMORY, "no memory for a sweep");
    m->base = *base;
    od_status status = parse_axis("x", args->x, &m->x);
    if (!status)
        status = parse_axis("y", args->y, &m->y);
    if (!status && m->x.which == m->y.which)
        status = od_fail(OD_ERR_USAGE, "--x and --y: %s twice", m->x.name);
    if (!status)
        status = fill(m);
    if (!status && args->report[0])
        status = page_write(args->report, page_theory_js, map_json(m));
    if (!status && args->json) {
        json_t *document = map_json(m);
        status = document ? od_json_print(document) : od_fail(OD_ERR_MEMORY, "no memory for a JSON document");
        json_decref(document);
    } else if (!status) {
        print_map(m);
    }
    free(m);
    return status;
}
