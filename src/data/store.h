/* Images prepared once: one file of the cache, named after a key that tells what it was made from, and mapped.
 *
 *   header (4096 bytes), images of training and then of testing, labels, notes
 * With no place for it in the cache the same file lies in memory. Whatever is wrong with a file of the cache, it is
 * made anew. */
#ifndef DATA_STORE_H
#define DATA_STORE_H

#include <stdint.h>

#include "offdiag/data.h"

/* Fill images, labels, sizes, mean, std and `skipped` of `dataset` from the cache; *found false: it has no sound file.
 * Notes that were kept with it are logged as warnings. Only a failing memory or the like is an error. */
od_status od_store_open(od_dataset *dataset, const char *key, bool *found);

typedef struct od_store od_store; /* one that is being written */

/* Sizes and name come from the data set. Without a cache directory: in memory, with a warning. */
od_status od_store_create(od_store **out, const od_dataset *dataset, const char *key);
/* Images in order: those of training before those of testing. image (h, w, c). */
od_status od_store_add(od_store *store, bool testing, const uint8_t *image, int32_t label);
/* A line that is kept: of an image that was left out. Beyond a few dozen they are only counted. */
void od_store_skip(od_store *store, const char *line);
/* Put it in its place, and open it into `dataset`. The writer is freed either way. */
od_status od_store_finish(od_store *store, od_dataset *dataset);
void od_store_abort(od_store *store); /* nothing stays; NULL is fine */

#endif
