/* What a replica has learned, on the host: to carry it into another one, or to write a checkpoint of it elsewhere. */
#ifndef TRAIN_SNAPSHOT_H
#define TRAIN_SNAPSHOT_H

#include "dist/team.h"
#include "train/classifier.h"

enum { OD_SNAPSHOT_ARENAS = 8 };

typedef struct od_snapshot {
    int count;
    od_span spans[OD_SNAPSHOT_ARENAS];
    size_t sizes[OD_SNAPSHOT_ARENAS];
    float *values[OD_SNAPSHOT_ARENAS];
} od_snapshot;

/* Parameters, optimiser state, statistics, target, and the classifier's unless it is NULL. */
od_status od_snapshot_take(od_snapshot *snapshot, const od_model *model, const od_classifier *online);
/* Into a model of the same configuration. */
od_status od_snapshot_put(const od_snapshot *snapshot, od_model *model, const od_classifier *online);
/* What member `from` of the team has learned, in the leader; all take part, and the others' snapshots stay empty. */
od_status od_snapshot_gather(od_snapshot *snapshot, const od_model *model, const od_classifier *online,
                             od_member *member, int from);
/* The values of the arena that `span` is; NULL: not in it. */
const float *od_snapshot_find(const od_snapshot *snapshot, od_span span);
bool od_snapshot_finite(const od_snapshot *snapshot);
void od_snapshot_free(od_snapshot *snapshot);

#endif
