#include "ops/variant.h"

#include <pthread.h>
#include <string.h>

#include "base/log.h"

enum { MAX_REF_USED = 63 };

static const char *ref_used[MAX_REF_USED + 1];
static pthread_mutex_t ref_lock = PTHREAD_MUTEX_INITIALIZER;

size_t od_variant_pass_over = 0;

static void note_ref(const char *operation) {
    pthread_mutex_lock(&ref_lock);
    size_t i = 0;
    while (i < MAX_REF_USED && ref_used[i] && strcmp(ref_used[i], operation) != 0)
        i++;
    if (i < MAX_REF_USED)
        ref_used[i] = operation;
    pthread_mutex_unlock(&ref_lock);
}

const char *const *od_variant_ref_used(void) {
    return ref_used;
}

size_t od_variant_choose(const od_device *device, const char *operation, const od_variant *variants, size_t count,
                         const void *shape) {
    od_family family = od_device_family(device);
    size_t over = od_variant_pass_over;
    for (size_t i = 0; i + 1 < count; i++) {
        const od_variant *v = &variants[i];
        const char *why = NULL;
        if (v->family != OD_FAMILY_REF && v->family != family)
            why = "another family";
        else if ((!v->supports || v->supports(device, shape, &why)) && over-- == 0)
            return i;
        od_log_topic("variants", "%s: %s refused: %s", operation, v->name, why ? why : "shape not supported");
    }
    if (count > 1)
        note_ref(operation);
    return count - 1;
}
