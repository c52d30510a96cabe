/* Reports: one page of HTML with Chart.js, a script and its data in it, that loads nothing from elsewhere. */
#ifndef CLI_PAGE_H
#define CLI_PAGE_H

#include <jansson.h>

#include "offdiag/status.h"

/* Writes page.html with one of the scripts below and its data, which is taken over (NULL: no memory). */
od_status page_write(const char *path, const char *script, json_t *data);

json_t *page_number(double x);       /* null where it is not finite */
json_t *page_text(const char *text); /* bytes that are no UTF-8 become '?' */

/* Embedded when the program was built; page_chart_js is empty where Chart.js was not there. */
extern const char page_html[], page_chart_js[], page_theory_js[], page_report_js[];

#endif
