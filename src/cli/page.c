#include "cli/page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

json_t *page_number(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

json_t *page_text(const char *text) {
    json_t *json = json_string(text);
    char *copy = json ? NULL : strdup(text);
    for (char *c = copy; c && *c; c++)
        if (*c & 0x80)
            *c = '?';
    if (copy)
        json = json_string(copy);
    free(copy);
    return json;
}

/* JSON inside a script element: no '<', so that nothing in it can end the element or open a comment. */
static char *dump(const json_t *data) {
    static const char escape[] = "\\u003c";
    char *text = json_dumps(data, JSON_COMPACT | JSON_REAL_PRECISION(5)), *to;
    size_t length = text ? strlen(text) : 0, extra = 0;
    for (const char *c = text; c && *c; c++)
        extra += *c == '<' ? sizeof escape - 2 : 0;
    char *safe = text ? malloc(length + extra + 1) : NULL;
    if ((to = safe)) {
        for (const char *c = text; *c; c++)
            if (*c == '<')
                to = mempcpy(to, escape, sizeof escape - 1);
            else
                *to++ = *c;
        *to = '\0';
    }
    free(text);
    return safe;
}

od_status page_write(const char *path, const char *script, json_t *data) {
    static const char *const marks[] = {"/*CHART*/", "/*DATA*/", "/*SCRIPT*/"};
    enum { MARKS = 3 };
    od_part parts[2 * MARKS + 1];
    od_status status = OD_OK;
    char *text = data ? dump(data) : NULL;
    if (!page_chart_js[0]) {
        status = od_fail(OD_ERR_UNSUPPORTED,
                         "%s: this program was built without Chart.js: install libjs-chart.js, or "
                         "build with -Dchart_js=FILE",
                         path);
        goto out;
    }
    if (!text) {
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for the page", path);
        goto out;
    }
    const char *inserts[] = {page_chart_js, text, script}, *at = page_html;
    for (int i = 0; i < MARKS; i++) {
        const char *mark = strstr(at, marks[i]);
        parts[2 * i] = (od_part){at, (size_t)(mark - at)};
        parts[2 * i + 1] = (od_part){inserts[i], strlen(inserts[i])};
        at = mark + strlen(marks[i]);
    }
    parts[2 * MARKS] = (od_part){at, strlen(at)};
    status = od_file_write_atomic_parts(path, parts, 2 * MARKS + 1);
out:
    free(text);
    json_decref(data);
    return status;
}
