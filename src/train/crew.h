/* The members of this process: a thread and a device each. */
#ifndef TRAIN_CREW_H
#define TRAIN_CREW_H

#include "train/trainer.h"

enum { OD_CREW_MOST = 64 }; /* devices of a process */

/* ids (OD_CREW_MOST): of the devices that a list of names means, in its order. */
od_status od_crew_devices(char ids[][24], int *count, const char *list);

typedef struct od_crew {
    od_team *team; /* NULL: one device in one process */
    int count;
    od_trainer *trainers; /* (count) */
    od_dataset *dataset;  /* opened by the first of them */
    od_status (*body)(od_trainer *t);
    od_record record; /* of the run; used by rank 0 */
} od_crew;

/* The devices that config->device names, and a team of them and of the other ranks'. */
od_status od_crew_create(od_crew *crew, const od_train_config *config, od_train_result *result);
void od_crew_destroy(od_crew *crew);

/* `body` for each member, at the same time. OD_OK when it was for all that did not leave; else the status and message
 * of the first that failed by itself. */
od_status od_crew_run(od_crew *crew, od_status (*body)(od_trainer *t));

#endif
