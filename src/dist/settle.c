#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/team.h"

/* failures (count): of all members, each of which gives its own; what the first of them said. */
static od_status hear(od_member *m, od_status *failures, od_status status, od_failure *first) {
    const int count = od_member_count(m);
    int who = 0;
    od_failure *all = NULL; /* (count) */
    od_failure own = {.status = status};
    if (od_member_exchange(m, failures, &status, sizeof status))
        return OD_ERR_PEER;
    while (who < count && failures[who] == OD_OK)
        who++;
    if (who == count)
        return OD_OK;
    if (!(all = malloc((size_t)count * sizeof *all)))
        return od_fail(OD_ERR_MEMORY, "no memory for the messages of %d devices", count);
    (void)snprintf(own.message, sizeof own.message, "%s", status ? od_error_message() : "");
    od_status told = od_member_exchange(m, all, &own, sizeof own);
    if (!told) {
        *first = all[who];
        told = who == od_member_index(m) || first->status == OD_ERR_USAGE ? first->status : OD_ERR_PEER;
        told = od_fail(told, "%s", first->message);
    }
    free(all);
    return told;
}

od_status od_member_settle(od_member *m, od_status status, od_failure *first) {
    const int count = od_member_count(m);
    od_status *failures = calloc((size_t)count, sizeof *failures);
    first->status = OD_OK;
    if (!failures)
        return od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
    status = hear(m, failures, status, first);
    free(failures);
    return status;
}
