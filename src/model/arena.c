#include "model/arena.h"

#include <stdlib.h>

#include "base/grow.h"

enum { ALIGNMENT = 64 }; /* elements: whole cache lines, and vectors of any device */

void od_plan_add(od_plan *plan, od_place *place, size_t elements, int first, int last) {
    od_plan_row *rows = od_grow(plan->rows, plan->count, &plan->capacity, sizeof *rows);
    if (!rows) {
        plan->failed = true;
        return;
    }
    plan->rows = rows;
    const size_t rounded = (elements + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    plan->rows[plan->count++] = (od_plan_row){.place = place, .elements = rounded, .first = first, .last = last};
}

void od_plan_free(od_plan *plan) {
    free(plan->rows);
    *plan = (od_plan){0};
}

static int larger_first(const void *a, const void *b) {
    const od_plan_row *x = a, *y = b;
    if (x->elements != y->elements)
        return x->elements < y->elements ? 1 : -1;
    return x->first != y->first ? (x->first > y->first) - (x->first < y->first) : (x->place > y->place) * 2 - 1;
}

static int by_offset(const void *a, const void *b) {
    const od_plan_row *x = *(od_plan_row *const *)a, *y = *(od_plan_row *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* The lowest offset from `at` on where a tensor does not cross into another part. */
static size_t in_one_part(size_t at, size_t elements, size_t part_size) {
    return at / part_size == (at + elements - 1) / part_size ? at : (at / part_size + 1) * part_size;
}

od_status od_plan_solve(od_plan *plan, size_t part_size, size_t *total) {
    *total = 0;
    od_plan_row **together = malloc((plan->count + 1) * sizeof(od_plan_row *)); /* by offset */
    if (!together || plan->failed) {
        free(together);
        return od_fail(OD_ERR_MEMORY, "no memory to plan %zu tensors", plan->count);
    }
    qsort(plan->rows, plan->count, sizeof *plan->rows, larger_first);
    for (size_t i = 0; i < plan->count; i++) {
        od_plan_row *row = &plan->rows[i];
        if (row->elements > part_size) {
            free(together);
            return od_fail(OD_ERR_DEVICE_MEMORY, "a tensor of %.1f MiB is larger than one allocation may be, %.1f MiB",
                           (double)row->elements * sizeof(float) / 0x1p20, (double)part_size * sizeof(float) / 0x1p20);
        }
        size_t count = 0, at = 0;
        for (size_t j = 0; j < i; j++)
            if (plan->rows[j].first <= row->last && row->first <= plan->rows[j].last)
                together[count++] = &plan->rows[j];
        qsort(together, count, sizeof(od_plan_row *), by_offset);
        for (size_t j = 0; row->elements && j < count; j++) {
            at = in_one_part(at, row->elements, part_size);
            if (at + row->elements <= together[j]->offset)
                break;
            const size_t end = together[j]->offset + together[j]->elements;
            at = end > at ? end : at;
        }
        row->offset = row->elements ? in_one_part(at, row->elements, part_size) : 0;
        *row->place = (od_place){row->offset, true};
        *total = row->offset + row->elements > *total ? row->offset + row->elements : *total;
    }
    free(together);
    return OD_OK;
}

size_t od_arena_part_size(const od_device *device) {
    const uint64_t elements = od_device_get_info(device)->max_alloc_bytes / sizeof(float);
    return (size_t)(elements < ALIGNMENT ? ALIGNMENT : elements / ALIGNMENT * ALIGNMENT);
}

od_status od_arena_create(od_arena *arena, od_device *device, size_t total) {
    *arena = (od_arena){.part_size = od_arena_part_size(device)};
    const size_t count = (total + arena->part_size - 1) / arena->part_size;
    arena->parts = calloc(count + 1, sizeof(od_buffer *));
    if (!arena->parts)
        return od_fail(OD_ERR_MEMORY, "no memory for an arena of %zu parts", count);
    for (; arena->part_count < count; arena->part_count++) {
        const size_t left = total - arena->part_count * arena->part_size;
        const size_t elements = left < arena->part_size ? left : arena->part_size;
        od_status status = od_buffer_create(device, elements * sizeof(float), &arena->parts[arena->part_count]);
        if (status)
            return status;
    }
    return OD_OK;
}

od_span od_arena_span(const od_arena *arena, od_place place) {
    if (!place.used || !arena->part_count)
        return OD_NO_SPAN;
    return (od_span){arena->parts[place.offset / arena->part_size], place.offset % arena->part_size};
}

void od_arena_destroy(od_arena *arena) {
    for (size_t i = 0; i < arena->part_count; i++)
        od_buffer_release(arena->parts[i]);
    free(arena->parts);
    *arena = (od_arena){0};
}
