/* The members of a run and how a micro-batch is divided over them: equal in every member. */
#ifndef TRAIN_LAYOUT_H
#define TRAIN_LAYOUT_H

#include "dist/team.h"
#include "offdiag/device.h"

typedef struct od_place {
    char id[24], name[256]; /* the device's */
    int rank;
} od_place;

typedef struct od_layout {
    int count, index; /* members; this one */
    od_place *places; /* (count) */
    double *weights;  /* (count) what shares are in proportion to */
    int *shares;      /* (count) images of a micro-batch */
    int *caps;        /* (count) images of a pass that the device has memory for, as far as is known */
    bool fixed;       /* by --split */
} od_layout;

/* The devices of all members, with equal weights. member NULL: alone. */
od_status od_layout_create(od_layout *layout, od_member *member, const od_device_info *device);
void od_layout_destroy(od_layout *layout);
/* Those members alone that stay (count). */
void od_layout_keep(od_layout *layout, const bool *stays);

/* values (count): each member's, in all. member NULL: as it is. */
od_status od_layout_exchange(const od_layout *layout, od_member *member, double own, double *values);

/* This member's part [*first, *first + *n) of `total` things, by weight. */
od_status od_layout_range(const od_layout *layout, int total, int *first, int *n);

/* "0:1 (NAME)", with the rank where there are several; in memory that the next call of this thread takes again. */
const char *od_layout_name(const od_layout *layout, int i);

#endif
