/* The state of a training run: a member (a device, and on it a replica of the model with its part of every batch), and
 * the record that the leader keeps of the whole. All members make the same calls in the same order: what follows from
 * options, data and what the team agreed on is equal in all of them. With one device there is no team, `member` is
 * NULL, and nothing is waited for.
 *
 * crew.c has the threads, setup.c what comes before the first step, replica.c the model and its place on the device,
 * calibrate.c and balance.c the division of the batch, loop.c the steps, epoch.c what is reported, recover.c failures.
 */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "dist/team.h"
#include "train/checkpoint.h"
#include "train/layout.h"
#include "train/metrics.h"
#include "train/online.h"
#include "train/progress.h"
#include "train/run.h"
#include "train/views.h"

enum { OD_LOSS_SLOTS = 32 }; /* losses that wait until they are logged in one go */

/* What is written and shown of a run. */
typedef struct od_record {
    od_run run;
    struct od_tensorboard *tensorboard; /* NULL: not asked for, or given up */
    od_progress progress;
    json_t *splits;    /* the divisions of the batch so far, for config.json; NULL: one device from the start */
    bool warned;       /* of a collapse */
    uint64_t reported; /* the step of the last epoch's end that was logged */
    od_train_result *result;
} od_record;

typedef struct od_trainer {
    od_checkpoint_info info; /* configuration and progress; saved with each checkpoint */
    od_member *member;       /* NULL: alone */
    struct od_crew *crew;    /* of this process */
    od_record *record;       /* the leader's; NULL: another leads */
    od_layout layout;

    char spec[24]; /* of the device */
    od_device *device;
    od_dataset *dataset; /* the crew's */
    od_loader *loader;   /* micro-batches */
    od_model *model;
    int capacity; /* images of a pass that model and views have room for */
    od_views views;
    od_online *online; /* NULL: not asked for */

    uint64_t total;             /* steps of the whole run */
    uint64_t closed;            /* the step at which an epoch was last evaluated and saved, or the run began */
    uint64_t reported;          /* the record's, as known after a failure */
    uint64_t batches;           /* steps of an epoch */
    int parts;                  /* micro-batches of a batch */
    int waiting;                /* steps that are not logged yet */
    od_span losses;             /* (OD_LOSS_SLOTS) their losses; with a team: this member's parts of them */
    double sums[OD_LOSS_SLOTS]; /* with a team: of all members */
    double flushed;             /* when they were logged last */
    double busy;                /* seconds of this member's own work on the steps since its share was set */
    uint64_t timed;             /* those steps */

    od_span stats, target_stats;      /* with a team: batch norm's statistics as the step found them */
    bool in_step;                     /* they may have moved since */
    bool stop;                        /* all were asked to stop */
    bool left;                        /* this member is out of the team; its device is closed */
    bool evaluated;                   /* before the first step */
    bool agreed;                      /* the present failure is known to all */
    od_status failure;                /* of the first member that failed */
    char message[OD_FAILURE_MESSAGE]; /* what it said */
} od_trainer;

/* What an epoch came to; NaN where it was not measured. */
typedef struct od_epoch {
    uint64_t epoch;
    double loss, knn, feature_rank;
    double online, online_train; /* accuracy on test images, and on views as it learned */
    double offdiag_norm, offdiag_max;
    double images_per_s;
    od_collapse collapse;
} od_epoch;

/* A line for the user, of the leader alone. */
#define od_say(t, ...) ((t)->record ? od_progress_line(&(t)->record->progress, __VA_ARGS__) : (void)0)

static inline const od_classifier *od_trainer_classifier(const od_trainer *t) {
    return t->online ? &t->online->classifier : NULL;
}

/* Images of a micro-batch that are this member's. */
int od_trainer_share(const od_trainer *t);

/* ---- setup.c, crew.c -------------------------------------------------------------------------------------------- */

/* From a device's name to a model at the right step. t->left: this device does not pay and is left out. */
od_status od_trainer_prepare(od_trainer *t);
void od_trainer_close(od_trainer *t);
void od_record_close(od_record *record);
/* Member `to`, of another process, goes on with the run's files, which the leader closes. *visible: it finds them;
 * nothing has happened otherwise. */
od_status od_trainer_hand_over(od_trainer *t, int to, bool *visible);
/* config.json, with the splits so far. The leader's. */
od_status od_trainer_write_config(od_trainer *t);
/* Text for the checkpoint: devices and shares; NULL: one device. To be freed. */
char *od_trainer_split_text(const od_trainer *t);

/* Whether all members are well: od_member_agree. The message names the device where it was one, t->failure is the first
 * one's status in all members; USAGE is every member's status then. Alone: `status`. */
od_status od_trainer_agree(od_trainer *t, od_status status);
/* The same between parts of the setup, where every member comes with its status: nobody is taken by surprise, and all
 * end in good order even where a rank has no member that is well. */
od_status od_trainer_settle(od_trainer *t, od_status status);
/* Whether it is a device that such a failure is about. */
bool od_trainer_device_failed(od_status status);
/* The team goes on without those that don't stay; who leads now, leads. */
od_status od_trainer_stay(od_trainer *t, bool stays);

/* ---- replica.c -------------------------------------------------------------------------------------------------- */

/* Model, views and classifier for `capacity` images of a pass, with initial weights; tried out on the device, so that
 * memory that runs out does so now. They don't belong to the team yet. */
od_status od_replica_build(od_trainer *t, int capacity);
void od_replica_destroy(od_trainer *t);
/* The layout's shares in proportion to its weights, and replicas for them with some room, all in the team. A device
 * that lacks the memory gets less; where all together lack it the micro-batch becomes smaller. */
od_status od_replica_fit(od_trainer *t);
/* The same in mid-run: the state of the leader's replica goes on in all. */
od_status od_replica_refit(od_trainer *t);
/* What the leader's replica has learned, to all. */
od_status od_replica_sync(od_trainer *t);
/* The loader at the step that is next. */
od_status od_trainer_seek(od_trainer *t);

/* ---- calibrate.c, balance.c ------------------------------------------------------------------------------------- */

/* Weights of the layout, from short measurements; with those that don't pay left out (t->left). Uses up the replica. */
od_status od_trainer_calibrate(od_trainer *t);
/* At an epoch's end: other shares where the members' own times came to differ. */
od_status od_trainer_rebalance(od_trainer *t);
/* Note the present shares in the record's history. */
void od_trainer_note_split(od_trainer *t, const char *why);

/* ---- epoch.c ---------------------------------------------------------------------------------------------------- */

/* kNN of the untrained encoder; a resumed run knows it already. */
od_status od_trainer_evaluate_before(od_trainer *t);
/* Take the losses of the last steps, log them, and stop at the first that is no number. */
od_status od_trainer_flush_losses(od_trainer *t);
od_status od_trainer_save(od_trainer *t); /* a checkpoint, of finite values only */
/* Evaluation, metrics and checkpoint at an epoch's end. */
od_status od_trainer_finish_epoch(od_trainer *t);

/* ---- recover.c -------------------------------------------------------------------------------------------------- */

/* A step begins: a device copy of what it moves before it is complete. Alone there is nothing to do. */
od_status od_trainer_begin_step(od_trainer *t);
/* After `status` ended a member's part of the run: where a device failed, a checkpoint of the last complete step is
 * written, or the run is made fit to go on without it (OD_OK). */
od_status od_trainer_recover(od_trainer *t, od_status status);

#endif
