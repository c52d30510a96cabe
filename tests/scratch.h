/* A scratch directory for one test, removed when the test's process ends. Header only: no test needs more of it. */
#ifndef TEST_SCRATCH_H
#define TEST_SCRATCH_H

#include <criterion/criterion.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char scratch_dir[256];

static int scratch_remove_one(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

static void scratch_remove(void) {
    (void)nftw(scratch_dir, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Test(..., .init = scratch_init, .fini = scratch_remove): the directory is also this test's cache. */
static void scratch_init(void) {
    const char *base = getenv("TMPDIR");
    (void)snprintf(scratch_dir, sizeof scratch_dir, "%s/offdiag-test-XXXXXX", base && *base ? base : "/tmp");
    cr_assert_not_null(mkdtemp(scratch_dir));
    (void)setenv("XDG_CACHE_HOME", scratch_dir, 1);
}

/* A name in the scratch directory; valid until the fourth call after it. */
static const char *scratch_path(const char *name) {
    static char paths[4][512];
    static unsigned next;
    char *path = paths[next++ % 4];
    (void)snprintf(path, sizeof paths[0], "%s/%s", scratch_dir, name);
    return path;
}

#endif
