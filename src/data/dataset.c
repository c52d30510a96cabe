/* The data sets by name: one row each, and where their files are looked for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/text.h"
#include "data/class_names.h"
#include "data/reader.h"

typedef struct dataset_kind {
    const char *name;
    const char *folder; /* the usual name of the folder that holds the files */
    const char *probe;  /* a file that tells that folder; found with ".gz" too. NULL: any folder, which must be named */
    int h, w, c, classes;
    const char *const *class_names;
    float mean[3], std[3]; /* where they are not measured */
    const char *how_to_get;
    od_status (*read)(const struct dataset_kind *kind, od_dataset *dataset);
} dataset_kind;

static od_status read_mnist(const dataset_kind *kind, od_dataset *dataset);
static od_status read_cifar10(const dataset_kind *kind, od_dataset *dataset);
static od_status read_cifar100(const dataset_kind *kind, od_dataset *dataset);
static od_status read_stl10(const dataset_kind *kind, od_dataset *dataset);
static od_status read_folder(const dataset_kind *kind, od_dataset *dataset);

#define CHANNELS3(v)                                                                                                   \
    { (v), (v), (v) }
#define CIFAR100_ROW(name, classes, class_names)                                                                       \
    {                                                                                                                  \
        name, "cifar-100-binary", "train.bin", 32, 32, 3, classes, class_names, {0.5071f, 0.4865f, 0.4409f},           \
            {0.2673f, 0.2564f, 0.2762f}, "run: offdiag fetch cifar100", read_cifar100                                  \
    }
static const dataset_kind kinds[] = {
    {"fashion-mnist", "fashion-mnist", "train-images-idx3-ubyte", 28, 28, 1, 10, od_fashion_classes, CHANNELS3(0.2860f),
     CHANNELS3(0.3530f),
     "install Debian's package (apt-get install dataset-fashion-mnist) or run: offdiag fetch fashion-mnist",
     read_mnist},
    {"mnist", "mnist", "train-images-idx3-ubyte", 28, 28, 1, 10, od_digit_classes, CHANNELS3(0.1307f),
     CHANNELS3(0.3081f), "run: offdiag fetch mnist", read_mnist},
    {"cifar10",
     "cifar-10-batches-bin",
     "data_batch_1.bin",
     32,
     32,
     3,
     10,
     od_cifar10_classes,
     {0.4914f, 0.4822f, 0.4465f},
     {0.2470f, 0.2435f, 0.2616f},
     "run: offdiag fetch cifar10",
     read_cifar10},
    CIFAR100_ROW("cifar100", 100, od_cifar100_classes),
    CIFAR100_ROW("cifar100-coarse", 20, od_cifar100_coarse_classes),
    {.name = "stl10",
     .folder = "stl10_binary",
     .probe = "train_X.bin",
     .h = 96,
     .w = 96,
     .c = 3,
     .classes = 10,
     .class_names = od_stl10_classes,
     .how_to_get = "run: offdiag fetch stl10",
     .read = read_stl10},
    {.name = "folder", .c = 3, .read = read_folder},
};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

/* ---- readers ---------------------------------------------------------------------------------------------------- */

static bool file_exists(const char *dir, const char *file, const char *suffix, char *path, size_t size) {
    int n = snprintf(path, size, "%s/%s%s", dir, file, suffix);
    return n > 0 && (size_t)n < size && access(path, F_OK) == 0;
}

/* The path of `file` in the data set's folder, plain or with .gz. */
static od_status find_file(const od_dataset *dataset, const char *file, char *path, size_t size) {
    if (file_exists(dataset->dir, file, "", path, size) || file_exists(dataset->dir, file, ".gz", path, size))
        return OD_OK;
    return od_fail(OD_ERR_IO, "%s/%s: expected this file (or .gz) of %s, found none", dataset->dir, file,
                   dataset->name);
}

static od_status read_idx_split(const dataset_kind *kind, const od_dataset *dataset, const char *images,
                                const char *labels, od_split *out) {
    char images_path[1200], labels_path[1200];
    od_status status = find_file(dataset, images, images_path, sizeof(images_path));
    if (status == OD_OK)
        status = find_file(dataset, labels, labels_path, sizeof(labels_path));
    if (status == OD_OK)
        status = od_idx_read(images_path, labels_path, kind->h, kind->w, kind->classes, out);
    return status;
}

static od_status read_mnist(const dataset_kind *kind, od_dataset *dataset) {
    od_status status =
        read_idx_split(kind, dataset, "train-images-idx3-ubyte", "train-labels-idx1-ubyte", &dataset->train);
    if (status == OD_OK)
        status = read_idx_split(kind, dataset, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", &dataset->test);
    return status;
}

static od_status read_cifar10(const dataset_kind *kind, od_dataset *dataset) {
    enum { RECORDS = 10000 };
    char file[32], path[1200];
    for (int i = 1; i <= 6; i++) {
        if (i <= 5)
            (void)snprintf(file, sizeof(file), "data_batch_%d.bin", i);
        else
            (void)snprintf(file, sizeof(file), "test_batch.bin");
        od_status status = find_file(dataset, file, path, sizeof(path));
        if (status == OD_OK)
            status = od_cifar_read(path, 1, 0, kind->classes, RECORDS, i <= 5 ? &dataset->train : &dataset->test);
        if (status != OD_OK)
            return status;
    }
    return OD_OK;
}

/* Two label bytes a record: the coarse one, then the fine one. */
static od_status read_cifar100(const dataset_kind *kind, od_dataset *dataset) {
    char path[1200];
    int which = kind->classes == 20 ? 0 : 1;
    od_status status = find_file(dataset, "train.bin", path, sizeof(path));
    if (status == OD_OK)
        status = od_cifar_read(path, 2, which, kind->classes, 50000, &dataset->train);
    if (status == OD_OK)
        status = find_file(dataset, "test.bin", path, sizeof(path));
    if (status == OD_OK)
        status = od_cifar_read(path, 2, which, kind->classes, 10000, &dataset->test);
    return status;
}

static od_status read_stl10(const dataset_kind *kind, od_dataset *dataset) {
    (void)kind;
    return od_stl10_read(dataset);
}

static od_status read_folder(const dataset_kind *kind, od_dataset *dataset) {
    (void)kind;
    return od_folder_read(dataset);
}

/* ---- by name ---------------------------------------------------------------------------------------------------- */

const char *const *od_dataset_names(void) {
    static const char *const names[] = {"fashion-mnist",   "mnist", "cifar10", "cifar100",
                                        "cifar100-coarse", "stl10", "folder",  NULL};
    _Static_assert(sizeof(names) / sizeof(names[0]) == KINDS + 1, "a name for every kind");
    return names;
}

static const dataset_kind *find_kind(const char *name) {
    for (size_t i = 0; i < KINDS; i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

/* Does dir hold the files itself, or in a sub-folder of the usual name? found gets the folder. */
static bool probe_dir(const dataset_kind *kind, const char *dir, char *found, size_t size) {
    char path[1200];
    const char *const subfolders[] = {"", kind->folder};
    for (size_t i = 0; i < 2; i++) {
        int n = i ? snprintf(found, size, "%s/%s", dir, subfolders[i]) : snprintf(found, size, "%s", dir);
        if (n <= 0 || (size_t)n >= size)
            continue;
        if (file_exists(found, kind->probe, "", path, sizeof(path)) ||
            file_exists(found, kind->probe, ".gz", path, sizeof(path)))
            return true;
    }
    return false;
}

/* A folder that the caller names is the only one looked at: to take another one silently would train on other data. */
static od_status find_dir(const dataset_kind *kind, const char *dir, char *found, size_t size) {
    const char *places[3];
    size_t count = 0;
    if (!kind->probe) {
        struct stat info;
        if (!dir || !*dir)
            return od_fail(OD_ERR_USAGE, "%s: needs the folder of the images (--data DIR)", kind->name);
        if (stat(dir, &info) || !S_ISDIR(info.st_mode))
            return od_fail(OD_ERR_IO, "%s: expected a folder of images", dir);
        int n = snprintf(found, size, "%s", dir);
        return n > 0 && (size_t)n < size ? OD_OK : od_fail(OD_ERR_IO, "%.80s...: the path is too long", dir);
    }
    if (dir && *dir) {
        places[count++] = dir;
    } else {
        const char *env = getenv("OFFDIAG_DATA");
        if (env && *env)
            places[count++] = env;
        places[count++] = "/usr/share/datasets";
        places[count++] = "./data";
    }
    char searched[2048] = "";
    for (size_t i = 0; i < count; i++) {
        if (probe_dir(kind, places[i], found, size))
            return OD_OK;
        size_t used = strlen(searched);
        (void)snprintf(searched + used, sizeof(searched) - used, "%s%s, %s/%s", i ? ", " : "", places[i], places[i],
                       kind->folder);
    }
    return od_fail(OD_ERR_IO, "%s: expected the file %s (or .gz), found it in none of %s; %s", kind->name, kind->probe,
                   searched, kind->how_to_get);
}

od_status od_dataset_open(const char *name, const char *dir, int side, od_dataset **out) {
    enum { FOLDER_SIDE = 64 };
    *out = NULL;
    const dataset_kind *kind = find_kind(name);
    if (!kind)
        return od_fail(OD_ERR_USAGE, "unknown data set '%s': did you mean '%s'?", name,
                       od_nearest(name, od_dataset_names()));
    od_dataset *dataset = calloc(1, sizeof(*dataset));
    if (!dataset)
        return od_fail(OD_ERR_MEMORY, "%s: no memory", name);
    (void)snprintf(dataset->name, sizeof(dataset->name), "%s", kind->name);
    dataset->h = kind->h ? kind->h : side ? side : FOLDER_SIDE;
    dataset->w = kind->w ? kind->w : dataset->h;
    dataset->c = kind->c;
    dataset->classes = kind->classes;
    dataset->class_names = kind->class_names;
    memcpy(dataset->mean, kind->mean, sizeof(dataset->mean));
    memcpy(dataset->std, kind->std, sizeof(dataset->std));

    od_status status = find_dir(kind, dir, dataset->dir, sizeof(dataset->dir));
    if (status == OD_OK)
        status = kind->read(kind, dataset);
    if (status != OD_OK) {
        od_dataset_close(dataset);
        return status;
    }
    *out = dataset;
    return OD_OK;
}

void od_split_free(od_split *split) {
    free(split->images);
    free(split->labels);
    *split = (od_split){0};
}

void od_dataset_close(od_dataset *dataset) {
    if (!dataset)
        return;
    if (dataset->map) {
        (void)munmap(dataset->map, dataset->map_bytes);
    } else {
        od_split_free(&dataset->train);
        od_split_free(&dataset->test);
    }
    free(dataset->folds.indices);
    free(dataset->own_names);
    free(dataset);
}

int od_split_labelled(const od_split *split) {
    int n = 0;
    while (n < split->n && split->labels[n] >= 0)
        n++;
    return n;
}

void od_split_limit(od_split *split, size_t n) {
    if (n > 0 && n < (size_t)split->n)
        split->n = (int)n;
}
