/* A build without libcurl or libarchive. */
#include "offdiag/data.h"

const char *const *od_fetch_names(void) {
    static const char *const names[] = {"cifar10", "cifar100", "stl10", "mnist", "fashion-mnist", NULL};
    return names;
}

od_status od_fetch(const char *name, const od_fetch_options *options, char path[1024], bool *fetched) {
    (void)options;
    path[0] = '\0';
    *fetched = false;
    return od_fail(OD_ERR_UNSUPPORTED, "fetch %s: this build has no libcurl or no libarchive (meson: -Dfetch=enabled)",
                   name);
}
