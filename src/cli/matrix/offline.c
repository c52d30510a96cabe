/* offdiag matrix --offline: the targets, what each is asked for, the compilers, the verdict. */
#include "cli/matrix/offline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"

enum { MOST_TARGETS = 16 };

static od_status check_targets(const char *list) {
    const char *names[MOST_TARGETS + 1] = {NULL};
    char text[1024], *rest = NULL;
    for (size_t i = 0; od_targets[i].name && i < MOST_TARGETS; i++)
        names[i] = od_targets[i].name;
    (void)snprintf(text, sizeof text, "%s", list);
    for (char *name = strtok_r(text, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        bool known = false;
        for (size_t i = 0; names[i]; i++)
            known = known || strcmp(names[i], name) == 0;
        if (!known)
            return od_fail(OD_ERR_USAGE, "--offline --device: there is no target '%.64s'; the nearest one is '%s'",
                           name, od_nearest(name, names));
    }
    return OD_OK;
}

/* The chosen targets, what each is asked for, and which can't be compiled for. */
static od_status choose(od_offline *r, const od_matrix_options *o, const char *dir) {
    od_status status = OD_OK;
    r->targets = calloc(MOST_TARGETS, sizeof *r->targets);
    if (!r->targets)
        return od_fail(OD_ERR_MEMORY, "no memory for targets");
    for (size_t i = 0; od_targets[i].name && !status && !od_tools_interrupted(); i++) {
        const od_target *target = &od_targets[i];
        if (!od_list_holds(o->device, target->name) || (o->quick && !o->device[0] && !target->quick))
            continue;
        od_offline_target *t = &r->targets[r->target_count++];
        const od_device_info info = od_target_info(target);
        t->target = target;
        od_target_missing(&r->tools, target, dir, t->missing, sizeof t->missing, t->ptxas);
        if (!t->missing[0])
            status = od_offline_ask(&info, r->groups, &t->wanted);
    }
    return status;
}

/* What is here counts where no target was named; one that was named must have been compiled for. */
static od_status verdict(const od_offline *r, bool named) {
    static const char install[] = "on Debian, tools/setup --with-offline installs all of them";
    const od_offline_row *first = NULL;
    const od_offline_target *skipped = NULL;
    size_t missing = 0;
    for (size_t t = r->target_count; t-- > 0;)
        if (r->targets[t].missing[0]) {
            skipped = &r->targets[t];
            missing++;
        }
    for (size_t i = 0; i < r->row_count && !first; i++)
        first = r->rows[i].failure[0] ? &r->rows[i] : NULL;
    if (first)
        return od_fail(OD_ERR_NUMERIC, "%zu of %zu kernels failed; the first: %s %s:%s '%s': %s", r->failures,
                       r->row_count, first->target->name, first->program->program, first->kernel->name,
                       first->program->options, first->failure);
    if (!skipped)
        return OD_OK;
    if (missing == r->target_count)
        return od_fail(OD_ERR_UNSUPPORTED, "no target could be compiled for: %s; %s", skipped->missing, install);
    if (named)
        return od_fail(OD_ERR_UNSUPPORTED, "%zu of the %zu targets of --device could not be compiled for; %s: %s; %s",
                       missing, r->target_count, skipped->target->name, skipped->missing, install);
    (void)fprintf(stderr, "%zu of %zu targets skipped for want of their compilers; %s\n", missing, r->target_count,
                  install);
    return OD_OK;
}

static od_status make_folders(char *dir, size_t size) {
    const char *base = getenv("TMPDIR");
    char sub[320];
    if ((size_t)snprintf(dir, size, "%s/offdiag-offline-XXXXXX", base && *base ? base : "/tmp") >= size ||
        !mkdtemp(dir))
        return od_fail(OD_ERR_IO, "%s: cannot make a folder for the compilers", dir);
    for (int i = 0; i < OD_OFFLINE_WORKERS; i++) {
        (void)snprintf(sub, sizeof sub, "%.280s/%d", dir, i);
        od_status status = od_dir_make(sub);
        if (status)
            return status;
    }
    return OD_OK;
}

od_status od_matrix_offline(const od_matrix_options *o) {
    od_offline r = {.quick = o->quick, .groups = o->groups[0] ? o->groups : o->quick ? "conv,dense,norm" : ""};
    const double began = od_now();
    char dir[280] = "", *text = NULL;
    size_t bytes = 0;
    if (o->format == OD_MATRIX_HTML)
        return od_fail(OD_ERR_USAGE, "--offline has no --html: text, --markdown or --json");
    od_status status = check_targets(o->device);
    if (status)
        return status;
    od_tools_catch_signals();
    if (!(status = make_folders(dir, sizeof dir))) {
        od_tools_find(&r.tools, dir);
        if (!(status = choose(&r, o, dir)))
            status = od_offline_compile_all(&r, dir, o->timeout);
    }
    r.seconds = od_now() - began;
    if (!status && !(status = od_offline_report(&r, o->format, &text, &bytes)) &&
        !(status = od_matrix_write(o, text, bytes)))
        status = verdict(&r, o->device[0] != '\0');
    if (dir[0])
        od_dir_remove(dir);
    for (size_t t = 0; t < r.target_count; t++)
        od_wanted_free(&r.targets[t].wanted);
    free(r.targets);
    free(r.rows);
    free(text);
    return status;
}
