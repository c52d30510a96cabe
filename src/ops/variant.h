/* The ordered list of kernel variants behind an operation: best first, `ref` last; the first that accepts runs. */
#ifndef OPS_VARIANT_H
#define OPS_VARIANT_H

#include "offdiag/device.h"

typedef struct od_variant {
    const char *name; /* "cpu_direct" */
    od_family family; /* REF: any device */
    /* Whether it can run this shape on this device; if not, why (a static string) for the log. NULL: always. */
    bool (*supports)(const od_device *device, const void *shape, const char **why);
    const void *run; /* the operation's own function table */
} od_variant;

/* The index of the first variant that the device's family allows and that supports the shape; the last one (ref)
 * accepts everything. Refusals go to the log topic "variants", with `operation` (a literal) and the reason. */
size_t od_variant_choose(const od_device *device, const char *operation, const od_variant *variants, size_t count,
                         const void *shape);

/* How many variants that accept are passed over, as if they had refused: for checks that want the second choice too.
 * Not for use while another thread chooses. */
extern size_t od_variant_pass_over;

/* The operations of this process that had faster variants and yet ran `ref`; ends with NULL. */
const char *const *od_variant_ref_used(void);

/* Whether a work-item may make so many loop rounds (od_device_loop_limit); if not, why. For `supports`. */
static inline bool od_variant_loops(const od_device *device, uint64_t rounds, const char **why) {
    const uint64_t limit = od_device_loop_limit(device);
    *why = "more loop rounds for one work-item than the driver allows";
    return limit == 0 || rounds <= limit;
}

#endif
