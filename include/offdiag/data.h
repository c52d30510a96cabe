/* Data sets, and a loader that prepares shuffled batches on its own thread while the device works.
 *
 * Small sets are read into memory. STL-10 and folders of images are prepared once (unpacked, or decoded and cropped),
 * kept in one file of the cache and mapped: what a run does not touch takes no memory.
 *
 * Data files are untrusted: a missing, short, oversized or lying one is one line that names the file, what was expected
 * and what was found. Nothing is allocated because a header claims it: memory grows as data arrives. */
#ifndef OFFDIAG_DATA_H
#define OFFDIAG_DATA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "offdiag/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- data sets -------------------------------------------------------------------------------------------------- */

typedef struct od_split {
    int n;
    uint8_t *images; /* (n, h, w, c) */
    int32_t *labels; /* (n), 0 .. classes-1; -1: not known. Those that are known come first */
} od_split;

/* Evaluation on several given parts of the training images (STL-10: ten of 1,000). */
typedef struct od_folds {
    int count, size;  /* 0, 0: none */
    int32_t *indices; /* (count, size) in the training split */
} od_folds;

typedef struct od_dataset {
    char name[32];
    char dir[1024]; /* where the files were found */
    int h, w, c;    /* c is 1 or 3 */
    int classes;
    const char *const *class_names; /* (classes) */
    float mean[3], std[3];          /* of pixels in [0, 1]; one channel's are repeated */
    od_split train, test;           /* test.n is 0 for a folder without classes */
    od_folds folds;
    int skipped; /* images of a folder that did not decode */

    void *map; /* the mapped file that holds both splits' images and labels; NULL: each has memory of its own */
    size_t map_bytes;
    char **own_names; /* a folder's class names: one allocation */
} od_dataset;

/* The valid names, NULL-terminated. */
const char *const *od_dataset_names(void);

/* Read the data set `name`. dir: the folder of its files or the parent of that folder; NULL or "": $OFFDIAG_DATA, then
 * the usual places (/usr/share/datasets, ./data). An unknown name is OD_ERR_USAGE with the nearest valid one; files
 * that are nowhere are OD_ERR_IO with the places that were searched and how to get them.
 *
 * "folder": JPEG and PNG images of dir, which must be given; a sub-folder is a class. With dir/train and dir/test (or
 * dir/val) these are the splits; else every tenth image of a class is for testing; images without classes are all for
 * training. Each is resized so that its shorter side is `side`, and its middle cut out (torchvision's Resize and
 * CenterCrop). side is for folders only; 0: 64. */
od_status od_dataset_open(const char *name, const char *dir, int side, od_dataset **out);
void od_dataset_close(od_dataset *dataset); /* NULL is fine */

/* Keep the first n images of a split; 0 or more than there are: all. */
void od_split_limit(od_split *split, size_t n);
/* How many of its images have labels: the first ones. */
int od_split_labelled(const od_split *split);

/* Replace every image by its average over factor x factor squares; the sides must be multiples of factor. */
od_status od_dataset_downsample(od_dataset *dataset, int factor);

/* ---- downloading ------------------------------------------------------------------------------------------------ */

typedef struct od_fetch_options {
    const char *dir;        /* the data set's folder is made in it */
    const char *url;        /* instead of the usual one: an archive, or the folder of several files; NULL */
    const char *checksum;   /* of what is there: "md5:HEX" or "sha256:HEX", with commas for several; NULL: the usual */
    bool quiet;             /* no progress */
    const atomic_int *stop; /* not 0: end soon with OD_ERR_INTERRUPTED; NULL */
} od_fetch_options;

/* Download the data set `name`, check its size and checksum, and unpack it into dir/<its usual folder>, whole or not at
 * all. A download that was cut off goes on where it stopped. What is there already is not fetched again: *fetched
 * tells. path: the folder. OD_ERR_UNSUPPORTED: this build has no libcurl or libarchive. */
od_status od_fetch(const char *name, const od_fetch_options *options, char path[1024], bool *fetched);
const char *const *od_fetch_names(void);

/* ---- batches ---------------------------------------------------------------------------------------------------- */

typedef struct od_batch {
    int n;                 /* images in this batch: fewer than asked for only in an epoch's last one, where it may be 0
                              for a slice */
    int total;             /* images of the whole batch, of which this is the loader's slice */
    uint8_t *images;       /* (n, h, w, c) */
    uint32_t *ids;         /* (n) index in the split: the id of augmentation's random numbers */
    int32_t *labels;       /* (n) */
    uint32_t epoch, index; /* this is batch `index` of `epoch` */
} od_batch;

typedef struct od_loader_options {
    int batch;
    uint64_t seed;
    bool shuffle;     /* a permutation drawn from (seed, epoch); false: in order */
    bool drop_last;   /* leave out an incomplete last batch */
    int depth;        /* batches prepared ahead; 0: 3 */
    int first, count; /* only these images of each batch; count 0: all */
} od_loader_options;

typedef struct od_loader od_loader;

/* The split and the data set must outlive the loader. It starts at epoch 0, batch 0. */
od_status od_loader_create(const od_dataset *dataset, const od_split *split, const od_loader_options *options,
                           od_loader **out);
void od_loader_destroy(od_loader *loader); /* NULL is fine */

uint32_t od_loader_batches(const od_loader *loader); /* in an epoch */

/* The next batch, of the next epoch after the last one's; valid until the next call on this loader. Called from one
 * thread. */
od_status od_loader_next(od_loader *loader, const od_batch **batch);

/* From the next batch on only images [first, first + count) of each, which may be none (count 0). The order, the ids
 * and what makes a batch complete stay those of whole batches, so that loaders with slices that cover a batch give
 * together what one without gives. The last batch given becomes invalid. On OD_ERR_MEMORY the old slice stays. */
od_status od_loader_set_slice(od_loader *loader, int first, int count);

/* Go to batch `index` of `epoch`: what follows is bit for bit what streaming would have given there. index may be
 * od_loader_batches: the next epoch's first. */
od_status od_loader_seek(od_loader *loader, uint32_t epoch, uint32_t index);

#ifdef __cplusplus
}
#endif
#endif
