/* Tensors that live at different times share one memory. A plan knows their sizes and lifetimes, and places them before
 * anything runs; work is on one in-order queue, so a place may change its tenant between two launches. */
#ifndef MODEL_ARENA_H
#define MODEL_ARENA_H

#include "offdiag/device.h"

/* The memory: buffers of at most one allocation each, seen as one range of elements. */
typedef struct od_arena {
    od_buffer **parts;
    size_t part_count, part_size; /* elements of a part; the last may be shorter */
} od_arena;

typedef struct od_place {
    size_t offset; /* in the arena, in elements */
    bool used;
} od_place;

typedef struct od_plan_row {
    od_place *place; /* filled by od_plan_solve */
    size_t elements;
    int first, last; /* its lifetime in steps of the plan, both included */
    size_t offset;
} od_plan_row;

typedef struct od_plan {
    od_plan_row *rows;
    size_t count, capacity;
    bool failed; /* a row could not be added: no host memory */
} od_plan;

void od_plan_add(od_plan *plan, od_place *place, size_t elements, int first, int last);
/* Place every tensor, the largest first, as low as those it lives together with allow, and in one part of the arena.
 * *total: elements that the arena must have. */
od_status od_plan_solve(od_plan *plan, size_t part_size, size_t *total);
void od_plan_free(od_plan *plan);

/* Elements of the largest part that a device can allocate. */
size_t od_arena_part_size(const od_device *device);
od_status od_arena_create(od_arena *arena, od_device *device, size_t total);
od_span od_arena_span(const od_arena *arena, od_place place);
void od_arena_destroy(od_arena *arena);

#endif
