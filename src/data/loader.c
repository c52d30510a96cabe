/* Batches prepared ahead by one thread. The order is a function of (seed, epoch) alone, so a position is all the state.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "offdiag/data.h"

struct od_loader {
    const od_split *split;
    od_loader_options options;
    size_t image_bytes;
    uint32_t batches;
    int asked; /* options.batch before it was cut to the split */

    od_batch *ring;  /* (depth): the one in the caller's hands at `tail - 1`, the ready ones from `tail` */
    uint32_t *order; /* (split->n) of epoch order_epoch; the thread's own */
    uint32_t order_epoch;
    bool order_known;

    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t changed;
    uint32_t epoch, index;           /* the next batch to prepare */
    uint32_t next_epoch, next_index; /* the next batch to hand out */
    int first, count;                /* the slice; count 0: none */
    int room;                        /* images that a batch of the ring can hold */
    bool filling;                    /* the thread is writing into the ring */
    uint64_t head, tail;             /* batches prepared and taken since the last seek */
    uint64_t generation;             /* counts seeks: a batch begun before the last one is thrown away */
    bool held, stop;                 /* held: the caller looks at batch tail - 1 */
    pthread_t thread;
};

/* Images of a batch of `total` that are in the slice [first, first + count). */
static int slice_size(int total, int first, int count) {
    const int left = total - first;
    return left < 0 ? 0 : left < count ? left : count;
}

static void fill_batch(od_loader *loader, od_batch *batch, uint32_t epoch, uint32_t index, int slice, int count) {
    const od_split *split = loader->split;
    const size_t begin = (size_t)index * (size_t)loader->options.batch, left = (size_t)split->n - begin;
    const size_t first = begin + (size_t)slice;
    if (loader->options.shuffle && !(loader->order_known && loader->order_epoch == epoch)) {
        od_rng_permutation(loader->order, (size_t)split->n, loader->options.seed, epoch);
        loader->order_epoch = epoch;
        loader->order_known = true;
    }
    batch->total = left < (size_t)loader->options.batch ? (int)left : loader->options.batch;
    batch->n = slice_size(batch->total, slice, count);
    batch->epoch = epoch;
    batch->index = index;
    for (int i = 0; i < batch->n; i++) {
        size_t id = loader->options.shuffle ? loader->order[first + (size_t)i] : first + (size_t)i;
        batch->ids[i] = (uint32_t)id;
        batch->labels[i] = split->labels[id];
        memcpy(batch->images + (size_t)i * loader->image_bytes, split->images + id * loader->image_bytes,
               loader->image_bytes);
    }
}

/* Slots that must not be written: ready ones and the one in the caller's hands. */
static uint64_t slots_used(const od_loader *loader) {
    return loader->head - loader->tail + (loader->held ? 1 : 0);
}

static void *prepare_batches(void *argument) {
    od_loader *loader = argument;
    pthread_mutex_lock(&loader->lock);
    for (;;) {
        while (!loader->stop && slots_used(loader) >= (uint64_t)loader->options.depth)
            pthread_cond_wait(&loader->changed, &loader->lock);
        if (loader->stop)
            break;
        uint64_t generation = loader->generation;
        uint32_t epoch = loader->epoch, index = loader->index;
        const int first = loader->first, count = loader->count;
        loader->filling = true;
        od_batch *batch = &loader->ring[loader->head % (uint64_t)loader->options.depth];
        pthread_mutex_unlock(&loader->lock);
        fill_batch(loader, batch, epoch, index, first, count);
        pthread_mutex_lock(&loader->lock);
        loader->filling = false;
        pthread_cond_broadcast(&loader->changed); /* also to one that waits for this */
        if (generation != loader->generation)
            continue;
        loader->head++;
        loader->index++;
        if (loader->index == loader->batches) {
            loader->index = 0;
            loader->epoch++;
        }
    }
    pthread_mutex_unlock(&loader->lock);
    return NULL;
}

od_status od_loader_next(od_loader *loader, const od_batch **batch) {
    pthread_mutex_lock(&loader->lock);
    if (loader->held) { /* the last batch goes back */
        loader->held = false;
        pthread_cond_broadcast(&loader->changed);
    }
    while (loader->head == loader->tail)
        pthread_cond_wait(&loader->changed, &loader->lock);
    *batch = &loader->ring[loader->tail % (uint64_t)loader->options.depth];
    loader->tail++;
    loader->held = true;
    const bool last = (*batch)->index + 1 == loader->batches;
    loader->next_epoch = (*batch)->epoch + last;
    loader->next_index = last ? 0 : (*batch)->index + 1;
    pthread_mutex_unlock(&loader->lock);
    return OD_OK;
}

/* With the lock held. */
static void go_to(od_loader *loader, uint32_t epoch, uint32_t index) {
    loader->generation++;
    loader->epoch = loader->next_epoch = epoch;
    loader->index = loader->next_index = index;
    /* What is ready goes; head keeps its place, so that a slot being filled is filled again, not handed out. */
    loader->tail = loader->head;
    loader->held = false;
    pthread_cond_broadcast(&loader->changed);
}

od_status od_loader_seek(od_loader *loader, uint32_t epoch, uint32_t index) {
    if (index > loader->batches)
        return od_fail(OD_ERR_ARGUMENT, "loader: batch %u is not in an epoch of %u", index, loader->batches);
    const bool next = index == loader->batches;
    pthread_mutex_lock(&loader->lock);
    go_to(loader, epoch + next, next ? 0 : index);
    pthread_mutex_unlock(&loader->lock);
    return OD_OK;
}

uint32_t od_loader_batches(const od_loader *loader) {
    return loader->batches;
}

static void free_ring(od_batch *ring, int depth) {
    for (int i = 0; ring && i < depth; i++) {
        free(ring[i].images);
        free(ring[i].ids);
        free(ring[i].labels);
    }
    free(ring);
}

static void free_loader(od_loader *loader) {
    free_ring(loader->ring, loader->options.depth);
    free(loader->order);
    free(loader);
}

/* Batches of up to `count` images; NULL without memory. */
static od_batch *new_ring(const od_loader *loader, int count) {
    const size_t room = count ? (size_t)count : 1;
    od_batch *ring = calloc((size_t)loader->options.depth, sizeof(*ring));
    bool ok = ring;
    for (int i = 0; ok && i < loader->options.depth; i++) {
        od_batch *b = &ring[i];
        b->images = malloc(room * loader->image_bytes);
        b->ids = malloc(room * sizeof(*b->ids));
        b->labels = malloc(room * sizeof(*b->labels));
        ok = b->images && b->ids && b->labels;
    }
    if (ok)
        return ring;
    free_ring(ring, loader->options.depth);
    return NULL;
}

static bool alloc_loader(od_loader *loader) {
    loader->room = slice_size(loader->options.batch, loader->first, loader->count);
    loader->order = malloc(sizeof(*loader->order) * (size_t)loader->split->n);
    loader->ring = new_ring(loader, loader->room);
    return loader->order && loader->ring;
}

static od_status check_slice(int batch, int first, int count) {
    if (first < 0 || count < 0 || first > batch || count > batch - first)
        return od_fail(OD_ERR_ARGUMENT, "loader: images %d to %d + %d are not in a batch of %d", first, first, count,
                       batch);
    return OD_OK;
}

od_status od_loader_set_slice(od_loader *loader, int first, int count) {
    od_status status = check_slice(loader->asked, first, count);
    const int room = status ? 0 : slice_size(loader->options.batch, first, count);
    od_batch *ring = NULL;
    if (status)
        return status;
    if (room > loader->room && !(ring = new_ring(loader, room)))
        return od_fail(OD_ERR_MEMORY, "loader: no memory for batches of %d images", room);
    pthread_mutex_lock(&loader->lock);
    go_to(loader, loader->next_epoch, loader->next_index);
    while (loader->filling)
        pthread_cond_wait(&loader->changed, &loader->lock);
    /* The thread may have gone on meanwhile, with the old slice. */
    go_to(loader, loader->next_epoch, loader->next_index);
    loader->first = first;
    loader->count = count;
    if (ring) {
        free_ring(loader->ring, loader->options.depth);
        loader->ring = ring;
        loader->room = room;
    }
    pthread_mutex_unlock(&loader->lock);
    return OD_OK;
}

od_status od_loader_create(const od_dataset *dataset, const od_split *split, const od_loader_options *options,
                           od_loader **out) {
    *out = NULL;
    int depth = options->depth ? options->depth : 3;
    if (options->batch < 1 || depth < 1 || depth > 64)
        return od_fail(OD_ERR_ARGUMENT, "loader: expected a batch from 1 and a depth of 1 to 64, found %d and %d",
                       options->batch, depth);
    od_status status = check_slice(options->batch, options->first, options->count);
    if (status)
        return status;
    if (split->n < 1 || (options->drop_last && split->n < options->batch))
        return od_fail(OD_ERR_ARGUMENT, "loader: %d images of %s do not fill a batch of %d", split->n, dataset->name,
                       options->batch);
    od_loader *loader = calloc(1, sizeof(*loader));
    if (!loader)
        return od_fail(OD_ERR_MEMORY, "loader: no memory");
    loader->split = split;
    loader->options = *options;
    loader->asked = options->batch;
    loader->first = options->first;
    loader->count = options->count ? options->count : options->batch - options->first;
    loader->options.depth = depth + 1; /* and the one in the caller's hands */
    if (loader->options.batch > split->n)
        loader->options.batch = split->n; /* never more memory than the split asks for */
    loader->image_bytes = (size_t)dataset->h * (size_t)dataset->w * (size_t)dataset->c;
    size_t n = (size_t)split->n, batch = (size_t)loader->options.batch;
    loader->batches = (uint32_t)(options->drop_last ? n / batch : (n + batch - 1) / batch);
    if (!alloc_loader(loader)) {
        free_loader(loader);
        return od_fail(OD_ERR_MEMORY, "loader: no memory for %d batches of %zu images", depth, batch);
    }
    pthread_mutex_init(&loader->lock, NULL);
    pthread_cond_init(&loader->changed, NULL);
    int error = pthread_create(&loader->thread, NULL, prepare_batches, loader);
    if (error) {
        pthread_cond_destroy(&loader->changed);
        pthread_mutex_destroy(&loader->lock);
        free_loader(loader);
        return od_fail(OD_ERR_MEMORY, "loader: no thread: %s", strerror(error));
    }
    *out = loader;
    return OD_OK;
}

void od_loader_destroy(od_loader *loader) {
    if (!loader)
        return;
    pthread_mutex_lock(&loader->lock);
    loader->stop = true;
    pthread_cond_broadcast(&loader->changed);
    pthread_mutex_unlock(&loader->lock);
    pthread_join(loader->thread, NULL);
    pthread_cond_destroy(&loader->changed);
    pthread_mutex_destroy(&loader->lock);
    free_loader(loader);
}
