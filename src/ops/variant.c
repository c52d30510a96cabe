#include "ops/variant.h"

#include "base/log.h"

size_t od_variant_choose(const od_device *device, const char *operation, const od_variant *variants, size_t count,
                         const void *shape) {
    od_family family = od_device_family(device);
    for (size_t i = 0; i + 1 < count; i++) {
        const od_variant *v = &variants[i];
        const char *why = NULL;
        if (v->family != OD_FAMILY_REF && v->family != family)
            why = "another family";
        else if (!v->supports || v->supports(device, shape, &why))
            return i;
        od_log_topic("variants", "%s: %s refused: %s", operation, v->name, why ? why : "shape not supported");
    }
    return count - 1;
}
