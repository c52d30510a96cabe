/* A checkpoint's model on the devices that evaluate it: one, several of this process, those of other ranks. */
#ifndef TRAIN_LOADED_H
#define TRAIN_LOADED_H

#include "train/checkpoint.h"
#include "train/evaluate.h"

typedef struct od_loaded {
    od_checkpoint_info info;
    od_member *member; /* NULL: alone */
    od_layout layout;  /* shares in proportion to the devices' speeds */
    od_device *device;
    od_dataset *dataset; /* the process's; NULL: not asked for */
    od_model *model;
    od_views views;
} od_loaded;

/* What is loaded, and what each member does with it then; all make the same calls in the same order. */
typedef struct od_loading {
    const char *path;    /* a run directory or a checkpoint; every rank reads it */
    const char *devices; /* as --device takes them */
    const char *data;    /* the data set's folder; "": where the run found it */
    od_family family;
    od_status (*check)(const od_loaded *l, const void *context); /* mistakes that all see, before the work */
    od_status (*body)(od_loaded *l, void *context);
    void *context; /* shared by the members of a process */
} od_loading;
od_status od_loaded_run(const od_loading *loading);

/* Whether this member writes and reports. */
static inline bool od_loaded_leads(const od_loaded *l) {
    return !l->member || od_member_leads(l->member);
}

/* Features (n, F) on the host of the first n images of one split and of the first m of another (NULL: none), which
 * follow them; each member computes a range. *all is shared by a process's members until the next gather; *own is to be
 * freed when it is no longer used. */
od_status od_loaded_features(od_loaded *l, const float **all, float **own, const od_split *one, int n,
                             const od_split *other, int m);

#endif
