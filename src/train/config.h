/* The option table of a run, and how it is stored. */
#ifndef TRAIN_CONFIG_H
#define TRAIN_CONFIG_H

#include <jansson.h>

#include "base/options.h"
#include "offdiag/ops/augment.h"
#include "offdiag/train.h"

/* The table over `config`: flags, help, JSON. */
od_options od_train_options(od_train_config *config);

/* Every option as a JSON object (a new reference), and back with checks; `origin` is named in messages. */
json_t *od_train_config_to_json(const od_train_config *config);
od_status od_train_config_from_json(od_train_config *config, const json_t *object, const char *origin);

/* The first option in which two configurations differ, of those that a resumed run must keep; NULL: none. */
const char *od_train_config_difference(const od_train_config *a, const od_train_config *b);

extern const char *const od_preset_names[]; /* of data/presets, ends with NULL */
extern const char *const od_augment_names[];
/* The named policies of view 1 and view 2 with the data set's mean and std; crop_min > 0 replaces their smallest crop
 * area. */
void od_augment_policies_named(od_augment_policy views[2], int name, double crop_min, const float mean[3],
                               const float std[3]);

/* The run's options as the model's. image_side is the data set's, after down-sampling. */
void od_train_model_config(od_model_config *out, const od_train_config *config, int image_side);
int od_train_width(const od_train_config *config);      /* the default filled in */
int od_train_image_side(const od_train_config *config); /* for od_dataset_open */
const char *od_method_name(od_method method);
const char *od_loss_name(od_loss_kind loss);

#endif
