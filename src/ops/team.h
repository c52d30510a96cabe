/* How element-wise, row-wise and column-wise kernels (cl/vector.clh, cl/columns.clh) are laid out on a device: the
 * build options and the blocks each work-group takes. What a kernel sums in which order depends on family and shape
 * alone. */
#ifndef OPS_TEAM_H
#define OPS_TEAM_H

#include "offdiag/device.h"

/* A row or a block of elements for each work-group of `size` work-items. */
typedef struct od_team {
    const char *options;
    size_t size;
    size_t block; /* elements a work-group takes; a multiple of size * V */
    od_work work; /* of a launch, where the operation tells it */
} od_team;

/* For an element-wise operation on these tensors (their offsets decide on aligned vectors). */
od_team od_team_choose(const od_device *device, const char *operation, const od_span *spans, size_t span_count);
/* The same without vectors: for rows of few elements and for sums of scalars. */
od_team od_team_scalar(const od_device *device, const char *operation);

#define OD_TEAM_OF(device, operation, ...)                                                                             \
    od_team_choose((device), (operation), (const od_span[]){__VA_ARGS__},                                              \
                   sizeof((const od_span[]){__VA_ARGS__}) / sizeof(od_span))

/* Get and launch kernel `name` of `program` with `groups` work-groups. */
od_status od_team_launch(od_device *device, const od_team *team, const char *program, const char *name, size_t groups,
                         const od_arg *args, size_t arg_count);
#define OD_TEAM_LAUNCH(device, team, program, name, groups, ...)                                                       \
    od_team_launch((device), (team), (program), (name), (groups), (const od_arg[]){__VA_ARGS__},                       \
                   sizeof((const od_arg[]){__VA_ARGS__}) / sizeof(od_arg))

/* The columns of matrices (groups, rows, c) in chunks of rows. */
typedef struct od_columns {
    const char *options;
    size_t items;        /* work-items in a group */
    size_t columns;      /* that a work-group takes; 0: all of them */
    size_t finish_block; /* the same in a finishing kernel */
    size_t chunk_rows;
    size_t chunks; /* of chunk_rows rows, the last one shorter */
} od_columns;

od_columns od_columns_choose(const od_device *device, const char *operation, size_t rows, int c, const od_span *spans,
                             size_t span_count);
#define OD_COLUMNS_OF(device, operation, rows, c, ...)                                                                 \
    od_columns_choose((device), (operation), (rows), (c), (const od_span[]){__VA_ARGS__},                              \
                      sizeof((const od_span[]){__VA_ARGS__}) / sizeof(od_span))

/* The launch of a pass over the chunks, and of the kernel that adds up what the chunks gave. */
od_range od_columns_range(const od_columns *columns, int c, int groups);
od_range od_columns_finish_range(const od_columns *columns, int c);

static inline size_t od_ceil_div(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

#endif
