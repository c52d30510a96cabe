/* Arrays that grow by doubling. */
#ifndef BASE_GROW_H
#define BASE_GROW_H

#include <stdint.h>
#include <stdlib.h>

/* See to it that `items` (count of `capacity`, each `size` bytes; NULL at first) has room for one more. NULL without
 * memory, and then items stay as they are. */
static inline void *od_grow(void *items, size_t count, size_t *capacity, size_t size) {
    enum { FIRST = 16 };
    if (count < *capacity)
        return items;
    const size_t wanted = *capacity ? 2 * *capacity : FIRST;
    void *grown = wanted > SIZE_MAX / size ? NULL : realloc(items, wanted * size);
    if (grown)
        *capacity = wanted;
    return grown;
}

#endif
