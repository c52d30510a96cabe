/* A folder of the user's own images: what is in it (listing), and the prepared images made from that. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/grow.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/meter.h"
#include "base/rng.h"
#include "data/reader.h"
#include "data/store.h"

enum { MAX_DEPTH = 8, MAX_CLASSES = 100000, HELD_OUT = 10 /* every tenth image */, BLOCK = 128, MAX_THREADS = 16 };

/* ---- lists ------------------------------------------------------------------------------------------------------ */

typedef struct item {
    char *path; /* below the data set's folder */
    int32_t label;
    long long bytes, seconds, nanoseconds; /* the file's size and age */
} item;

typedef struct list {
    item *items;
    size_t n, capacity;
} list;

static od_status list_add(list *l, const char *path, int32_t label, const struct stat *info) {
    if (l->n >= INT_MAX)
        return od_fail(OD_ERR_FORMAT, "%s: more than %d images", path, INT_MAX);
    item *grown = od_grow(l->items, l->n, &l->capacity, sizeof *grown);
    if (!grown)
        return od_fail(OD_ERR_MEMORY, "no memory for a list of more than %zu images", l->n);
    l->items = grown;
    char *copy = path ? strdup(path) : NULL;
    if (path && !copy)
        return od_fail(OD_ERR_MEMORY, "no memory for a list of images");
    item new = {.path = copy, .label = label};
    if (info) {
        new.bytes = info->st_size;
        new.seconds = info->st_mtim.tv_sec;
        new.nanoseconds = info->st_mtim.tv_nsec;
    }
    l->items[l->n++] = new;
    return OD_OK;
}

static void list_free(list *l) {
    for (size_t i = 0; i < l->n; i++)
        free(l->items[i].path);
    free(l->items);
    *l = (list){0};
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name); /* not by locale: the order is part of the data set */
}

static int not_hidden(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

static od_status look_into(const char *path, struct dirent ***names, int *count) {
    *count = scandir(path, names, not_hidden, by_name);
    if (*count >= 0)
        return OD_OK;
    *names = NULL;
    return od_fail(OD_ERR_IO, "%s: cannot list it: %s", path, strerror(errno));
}

static void free_names(struct dirent **names, int count) {
    for (int i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

/* Images below root/below, in the order of their names; depth 0: of that folder alone. */
static od_status list_images(list *l, const char *root, const char *below, int32_t label, int depth) {
    char *folder = od_path_join(root, below);
    struct dirent **names = NULL;
    int count = 0;
    if (!folder)
        return od_fail(OD_ERR_MEMORY, "no memory for a path");
    od_status status = look_into(folder, &names, &count);
    for (int i = 0; i < count && !status; i++) {
        char *path = od_path_join(below, names[i]->d_name), *whole = path ? od_path_join(root, path) : NULL;
        struct stat info;
        if (!whole)
            status = od_fail(OD_ERR_MEMORY, "no memory for a path");
        else if (stat(whole, &info) == 0 && S_ISDIR(info.st_mode) && depth > 0)
            status = list_images(l, root, path, label, depth - 1);
        else if (od_image_name(names[i]->d_name) && (stat(whole, &info) || !S_ISDIR(info.st_mode)))
            status = list_add(l, path, label, &info); /* what cannot be read is named when it is decoded */
        free(path);
        free(whole);
    }
    free_names(names, count);
    free(folder);
    return status;
}

/* ---- what is in the folder -------------------------------------------------------------------------------------- */

typedef struct listing {
    list split[2]; /* training, testing */
    char **classes;
    int class_count; /* 0: images without classes */
} listing;

static bool is_folder(const char *root, const char *name) {
    char path[PATH_MAX];
    struct stat info;
    int n = snprintf(path, sizeof path, "%s/%s", root, name);
    return n > 0 && (size_t)n < sizeof path && stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static int find_class(const listing *l, const char *name) {
    for (int i = 0; i < l->class_count; i++)
        if (strcmp(l->classes[i], name) == 0)
            return i;
    return -1;
}

/* Every sub-folder of root/below that holds images is a class; those of testing must be among those of training. */
static od_status list_classes(listing *l, const char *root, const char *below, bool testing) {
    char *folder = od_path_join(root, below);
    struct dirent **names = NULL;
    int count = 0;
    od_status status = folder ? look_into(folder, &names, &count) : od_fail(OD_ERR_MEMORY, "no memory for a path");
    for (int i = 0; i < count && !status; i++) {
        const char *name = names[i]->d_name;
        list *split = &l->split[testing];
        size_t before = split->n;
        if (!is_folder(folder, name))
            continue;
        int label = testing ? find_class(l, name) : l->class_count;
        char *path = od_path_join(below, name);
        if (!path)
            status = od_fail(OD_ERR_MEMORY, "no memory for a path");
        else if (label < 0)
            od_log(OD_LOG_WARN, "%s/%s: left out, as training has no class of this name", root, path);
        else if (!(status = list_images(split, root, path, label, MAX_DEPTH)) && split->n == before)
            od_log(OD_LOG_WARN, "%s/%s: no image in this folder%s", root, path, testing ? "" : ", so it is no class");
        free(path);
        if (status || testing || split->n == before)
            continue;
        char **grown = realloc(l->classes, ((size_t)l->class_count + 1) * sizeof *grown);
        if (grown)
            l->classes = grown;
        if (!grown || !(grown[l->class_count] = strdup(name)))
            status = od_fail(OD_ERR_MEMORY, "no memory for the names of classes");
        else if (++l->class_count > MAX_CLASSES)
            status = od_fail(OD_ERR_FORMAT, "%s: more than %d classes", folder, MAX_CLASSES);
    }
    free_names(names, count);
    free(folder);
    return status;
}

/* Every tenth image of each class from training to testing. */
static od_status hold_out(listing *l) {
    list kept = {0};
    od_status status = OD_OK;
    int32_t label = -1;
    int index = 0;
    for (size_t i = 0; i < l->split[0].n; i++) {
        item *from = &l->split[0].items[i];
        index = from->label == label ? index + 1 : 0;
        label = from->label;
        list *to = index % HELD_OUT == HELD_OUT - 1 ? &l->split[1] : &kept;
        if (!status && !(status = list_add(to, NULL, label, NULL))) {
            to->items[to->n - 1] = *from;
            from->path = NULL; /* it moved */
        }
    }
    list_free(&l->split[0]);
    l->split[0] = kept;
    return status;
}

/* In an order of chance, always the same: --limit then takes some of every class. */
static od_status shuffle(list *l, uint64_t stream) {
    uint32_t *order = malloc((l->n + 1) * sizeof *order);
    item *items = malloc((l->n + 1) * sizeof *items);
    if (order && items) {
        od_rng_permutation(order, l->n, 0, stream);
        for (size_t i = 0; i < l->n; i++)
            items[i] = l->items[order[i]];
        free(l->items);
        l->items = items;
        l->capacity = l->n + 1;
        items = NULL;
    }
    bool ok = order && !items;
    free(order);
    free(items);
    return ok ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for a list of %zu images", l->n);
}

static void free_listing(listing *l) {
    list_free(&l->split[0]);
    list_free(&l->split[1]);
    for (int i = 0; i < l->class_count; i++)
        free(l->classes[i]);
    free(l->classes);
}

static od_status list_folder(listing *l, const char *root) {
    const char *test = is_folder(root, "test") ? "test" : is_folder(root, "val") ? "val" : NULL;
    bool splits = test && is_folder(root, "train");
    const char *train = splits ? "train" : "";
    list loose = {0};
    od_status status = OD_OK;
    if ((status = list_classes(l, root, train, false)) || (status = list_images(&loose, root, train, -1, 0)))
        goto out;
    if (l->class_count && loose.n)
        od_log(OD_LOG_WARN, "%s/%s: %zu image%s beside the class folders left out", root, train, loose.n,
               loose.n == 1 ? "" : "s");
    if (l->class_count == 0) {
        l->split[0] = loose;
        loose = (list){0};
    }
    if (l->split[0].n == 0) {
        status = od_fail(OD_ERR_FORMAT, "%s%s%s: expected JPEG or PNG images (.jpg, .jpeg, .png), found none", root,
                         splits ? "/" : "", train);
        goto out;
    }
    if (splits)
        status = l->class_count ? list_classes(l, root, test, true) : list_images(&l->split[1], root, test, -1, 0);
    else if (l->class_count)
        status = hold_out(l);
    for (int i = 0; i < 2 && !status; i++)
        status = shuffle(&l->split[i], (uint64_t)i);
out:
    list_free(&loose);
    return status;
}

/* Names, sizes and ages of all images, in order, and what is made of them. */
static od_status listing_key(char key[OD_SHA256_TEXT], const listing *l, int side) {
    size_t n = l->split[0].n + l->split[1].n, at = 0;
    const char **strings = calloc(2 * n + 1, sizeof *strings);
    char(*lines)[112] = malloc((n + 1) * sizeof *lines);
    od_status status = OD_OK;
    if (!strings || !lines) {
        status = od_fail(OD_ERR_MEMORY, "no memory for a list of %zu images", n);
        goto out;
    }
    (void)snprintf(lines[0], sizeof *lines, "folder, bilinear, side %d, %d classes", side, l->class_count);
    strings[0] = lines[0];
    for (int split = 0; split < 2; split++)
        for (size_t i = 0; i < l->split[split].n; i++) {
            const item *t = &l->split[split].items[i];
            at++;
            (void)snprintf(lines[at], sizeof *lines, "%d %d %lld %lld.%lld", split, (int)t->label, t->bytes, t->seconds,
                           t->nanoseconds);
            strings[2 * at - 1] = t->path;
            strings[2 * at] = lines[at];
        }
    od_sha256_strings(key, strings, 2 * n + 1);
out:
    free(lines);
    free(strings);
    return status;
}

/* ---- decoding --------------------------------------------------------------------------------------------------- */

/* A block of images that some threads decode; each takes the next one that nobody has taken. */
typedef struct block {
    const char *root;
    const item *items;
    int n, side;
    uint8_t *images;  /* (BLOCK, side, side, 3) */
    char (*why)[400]; /* (BLOCK) "": decoded */
    bool fatal;       /* no decoder, or no memory: the same for every image */
    pthread_mutex_t lock;
    int next;
} block;

static int take(block *b) {
    pthread_mutex_lock(&b->lock);
    int i = b->fatal ? b->n : b->next++;
    pthread_mutex_unlock(&b->lock);
    return i;
}

static void *decode_some(void *argument) {
    block *b = argument;
    size_t image = (size_t)b->side * b->side * 3;
    for (int i = take(b); i < b->n; i = take(b)) {
        char path[PATH_MAX];
        int length = snprintf(path, sizeof path, "%s/%s", b->root, b->items[i].path);
        od_status status = length > 0 && (size_t)length < sizeof path
                               ? od_image_decode(path, b->images + i * image, b->side)
                               : od_fail(OD_ERR_IO, "%.80s...: the path is too long", path);
        b->why[i][0] = '\0';
        if (!status)
            continue;
        (void)snprintf(b->why[i], sizeof b->why[i], "%s", od_error_message());
        if (status == OD_ERR_MEMORY || status == OD_ERR_UNSUPPORTED) {
            pthread_mutex_lock(&b->lock);
            b->fatal = true;
            pthread_mutex_unlock(&b->lock);
        }
    }
    return NULL;
}

/* With as many threads as there are cores; this one is one of them. */
static void decode_block(block *b) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int wanted = cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (int)cores, threads = 0;
    pthread_t thread[MAX_THREADS];
    b->next = 0;
    while (threads < wanted - 1 && threads < b->n - 1 &&
           pthread_create(&thread[threads], NULL, decode_some, b) == 0) /* fewer threads are no failure */
        threads++;
    (void)decode_some(b);
    for (int i = 0; i < threads; i++)
        (void)pthread_join(thread[i], NULL);
}

static od_status keep_block(od_store *store, const block *b, bool testing, size_t *kept, char first_failure[400]) {
    size_t image = (size_t)b->side * b->side * 3;
    od_status status = OD_OK;
    for (int i = 0; i < b->n && !status; i++) {
        if (b->why[i][0]) {
            if (b->fatal)
                return od_fail(OD_ERR_UNSUPPORTED, "%s", b->why[i]);
            if (!first_failure[0])
                memcpy(first_failure, b->why[i], sizeof b->why[i]);
            od_store_skip(store, b->why[i]);
        } else if (!(status = od_store_add(store, testing, b->images + i * image, b->items[i].label))) {
            ++*kept;
        }
    }
    return status;
}

static od_status decode_list(od_store *store, const od_dataset *d, const list *l, bool testing) {
    block b = {.root = d->dir, .side = d->h, .lock = PTHREAD_MUTEX_INITIALIZER};
    char first_failure[400] = "";
    size_t kept = 0;
    od_status status = OD_OK;
    b.images = malloc((size_t)BLOCK * d->h * d->w * 3);
    b.why = malloc(BLOCK * sizeof *b.why);
    if (!b.images || !b.why)
        status = od_fail(OD_ERR_MEMORY, "%s: no memory for %d images of side %d", d->dir, BLOCK, d->h);
    od_meter meter = od_meter_begin(false);
    for (size_t first = 0; first < l->n && !status; first += BLOCK) {
        b.items = l->items + first;
        b.n = l->n - first < BLOCK ? (int)(l->n - first) : BLOCK;
        od_meter_show(&meter, false, "Decoding %s images: %zu of %zu", testing ? "test" : "training", first, l->n);
        decode_block(&b);
        status = keep_block(store, &b, testing, &kept, first_failure);
    }
    od_meter_end(&meter);
    if (!status && l->n && kept == 0)
        status = od_fail(OD_ERR_FORMAT, "%s: none of the %zu %s images could be decoded; the first: %s", d->dir, l->n,
                         testing ? "test" : "training", first_failure);
    free(b.images);
    free(b.why);
    return status;
}

/* The names in one allocation that the data set owns: pointers, then text. */
static od_status own_class_names(od_dataset *d, const listing *l) {
    static const char *const no_class[] = {"image"};
    size_t bytes = (size_t)l->class_count * sizeof(char *);
    d->classes = l->class_count ? l->class_count : 1;
    d->class_names = no_class;
    if (l->class_count == 0)
        return OD_OK;
    for (int i = 0; i < l->class_count; i++)
        bytes += strlen(l->classes[i]) + 1;
    d->own_names = malloc(bytes);
    if (!d->own_names)
        return od_fail(OD_ERR_MEMORY, "no memory for the names of %d classes", l->class_count);
    char *text = (char *)(d->own_names + l->class_count);
    for (int i = 0; i < l->class_count; i++) {
        d->own_names[i] = text;
        text = stpcpy(text, l->classes[i]) + 1;
    }
    d->class_names = (const char *const *)d->own_names;
    return OD_OK;
}

od_status od_folder_read(od_dataset *d) {
    listing l = {0};
    char key[OD_SHA256_TEXT];
    od_store *store = NULL;
    bool found = false;
    od_status status = OD_OK;
    if ((status = list_folder(&l, d->dir)) || (status = own_class_names(d, &l)) ||
        (status = listing_key(key, &l, d->h)) || (status = od_store_open(d, key, &found)) || found)
        goto out;
    if ((status = od_store_create(&store, d, key)))
        goto out;
    for (int i = 0; i < 2 && !status; i++)
        status = decode_list(store, d, &l.split[i], i);
    if (status)
        od_store_abort(store);
    else
        status = od_store_finish(store, d);
out:
    free_listing(&l);
    return status;
}
