#include "model/params.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/grow.h"

static od_status add(od_param_table *table, const char *prefix, const char *suffix, od_param p, size_t *offset) {
    od_param *rows = od_grow(table->rows, table->size, &table->capacity, sizeof *rows);
    if (!rows)
        return od_fail(OD_ERR_MEMORY, "no memory for more than %zu parameters", table->size);
    table->rows = rows;
    int length = snprintf(p.name, sizeof p.name, "%s%s", prefix, suffix);
    if (length < 0 || (size_t)length >= sizeof p.name)
        return od_fail(OD_ERR_ARGUMENT, "parameter name too long: %s%s", prefix, suffix);
    p.count = (size_t)p.kernel_h * p.kernel_w * p.in * p.out;
    p.offset = table->count;
    /* 64-byte steps: every tensor starts on a vector boundary of any device. */
    table->count += (p.count + 15) / 16 * 16;
    table->rows[table->size++] = p;
    *offset = p.offset;
    return OD_OK;
}

od_status od_param_add_conv(od_param_table *table, const char *prefix, const char *suffix, int kernel, int in,
                            int in_stored, int out, size_t *offset) {
    od_param p = {
        .kind = OD_PARAM_CONV, .kernel_h = kernel, .kernel_w = kernel, .in = in, .in_stored = in_stored, .out = out};
    return add(table, prefix, suffix, p, offset);
}

od_status od_param_add_linear(od_param_table *table, const char *prefix, const char *suffix, int in, int out,
                              size_t *offset) {
    od_param p = {.kind = OD_PARAM_LINEAR, .kernel_h = 1, .kernel_w = 1, .in = in, .in_stored = in, .out = out};
    return add(table, prefix, suffix, p, offset);
}

od_status od_param_add_vector(od_param_table *table, const char *prefix, const char *suffix, int c, size_t *offset) {
    od_param p = {.kind = OD_PARAM_VECTOR, .kernel_h = 1, .kernel_w = 1, .in = 1, .in_stored = 1, .out = c};
    return add(table, prefix, suffix, p, offset);
}

void od_param_table_free(od_param_table *table) {
    free(table->rows);
    *table = (od_param_table){0};
}

const od_param *od_param_find(const od_param_table *table, const char *name) {
    for (size_t i = 0; i < table->size; i++)
        if (strcmp(table->rows[i].name, name) == 0)
            return &table->rows[i];
    return NULL;
}

size_t od_param_stored_count(const od_param *p) {
    return (size_t)p->kernel_h * p->kernel_w * p->in_stored * p->out;
}

size_t od_param_table_stored_count(const od_param_table *table) {
    size_t sum = 0;
    for (size_t i = 0; i < table->size; i++)
        sum += od_param_stored_count(&table->rows[i]);
    return sum;
}

/* Arena (tap, in, out) and stored (out, in, tap): one index map for every kind, as a linear layer has one tap. */
static inline size_t arena_index(const od_param *p, size_t tap, int in, int out) {
    return (tap * p->in + in) * p->out + out;
}

void od_param_to_stored(const od_param *p, float *stored, const float *arena) {
    size_t taps = (size_t)p->kernel_h * p->kernel_w;
    for (int o = 0; o < p->out; o++)
        for (int i = 0; i < p->in_stored; i++)
            for (size_t t = 0; t < taps; t++)
                *stored++ = arena[arena_index(p, t, i, o)];
}

void od_param_from_stored(const od_param *p, float *arena, const float *stored) {
    size_t taps = (size_t)p->kernel_h * p->kernel_w;
    memset(arena, 0, p->count * sizeof *arena); /* the padded input channels */
    for (int o = 0; o < p->out; o++)
        for (int i = 0; i < p->in_stored; i++)
            for (size_t t = 0; t < taps; t++)
                arena[arena_index(p, t, i, o)] = *stored++;
}
