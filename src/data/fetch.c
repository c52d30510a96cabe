/* The data sets that can be downloaded: where they are, how they are checked, and how they get into place.
 *
 * Everything happens in DIR/.NAME.partial: the download, which stays when it breaks off, and the new folder, which is
 * renamed to DIR/FOLDER when it is whole and otherwise removed. The published checksums of these sets are MD5 sums. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <md5.h>
#include <sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/text.h"
#include "data/fetch.h"

enum { MAX_FILES = 8, CHECKSUM_TEXT = 80 };
#define FREE_BYTES ((uint64_t)64 << 30) /* where the size is not known beforehand */

typedef struct remote_file {
    const char *name;
    uint64_t bytes;
    const char *checksum;
} remote_file;

typedef struct local_file {
    const char *name;
    uint64_t bytes; /* 0: any */
} local_file;

typedef struct fetch_set {
    const char *name, *folder, *url; /* url ends with '/' */
    bool archive;
    remote_file remote[MAX_FILES]; /* what is downloaded */
    local_file local[MAX_FILES];   /* what must be in the folder then */
    uint64_t unpacked;             /* most bytes of an archive's files */
} fetch_set;

#define IDX_LOCAL(a, b, c, d)                                                                                          \
    {                                                                                                                  \
        {"train-images-idx3-ubyte.gz", a}, {"train-labels-idx1-ubyte.gz", b}, {"t10k-images-idx3-ubyte.gz", c}, {      \
            "t10k-labels-idx1-ubyte.gz", d                                                                             \
        }                                                                                                              \
    }
static const fetch_set sets[] = {
    {.name = "cifar10",
     .folder = "cifar-10-batches-bin",
     .url = "https://www.cs.toronto.edu/~kriz/",
     .archive = true,
     .remote = {{"cifar-10-binary.tar.gz", 170052171, "md5:c32a1d4ab5d03f1284b67883e8d87530"}},
     .local = {{"data_batch_1.bin", 30730000},
               {"data_batch_2.bin", 30730000},
               {"data_batch_3.bin", 30730000},
               {"data_batch_4.bin", 30730000},
               {"data_batch_5.bin", 30730000},
               {"test_batch.bin", 30730000}},
     .unpacked = 200000000},
    {.name = "cifar100",
     .folder = "cifar-100-binary",
     .url = "https://www.cs.toronto.edu/~kriz/",
     .archive = true,
     .remote = {{"cifar-100-binary.tar.gz", 168513733, "md5:03b5dce01913d631647c71ecec9e9cb8"}},
     .local = {{"train.bin", 153700000}, {"test.bin", 30740000}},
     .unpacked = 200000000},
    {.name = "stl10",
     .folder = "stl10_binary",
     .url = "https://ai.stanford.edu/~acoates/stl10/",
     .archive = true,
     .remote = {{"stl10_binary.tar.gz", 2640397119, "md5:91f7769df0f17e558f3565bffb0c7dfb"}},
     .local = {{"train_X.bin", 138240000},
               {"train_y.bin", 5000},
               {"test_X.bin", 221184000},
               {"test_y.bin", 8000},
               {"unlabeled_X.bin", 2764800000},
               {"fold_indices.txt", 0}},
     .unpacked = 3200000000},
    {.name = "mnist",
     .folder = "mnist",
     .url = "https://ossci-datasets.s3.amazonaws.com/mnist/",
     .remote = {{"train-images-idx3-ubyte.gz", 9912422, "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"},
                {"train-labels-idx1-ubyte.gz", 28881, "md5:d53e105ee54ea40749a09fcbcd1e9432"},
                {"t10k-images-idx3-ubyte.gz", 1648877, "md5:9fb629c4189551a2d022fa330f9573f3"},
                {"t10k-labels-idx1-ubyte.gz", 4542, "md5:ec29112dd5afa0611ce80d1b7f02629c"}},
     .local = IDX_LOCAL(9912422, 28881, 1648877, 4542)},
    {.name = "fashion-mnist",
     .folder = "fashion-mnist",
     .url = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
     .remote = {{"train-images-idx3-ubyte.gz", 26421880, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"},
                {"train-labels-idx1-ubyte.gz", 29515, "md5:25c81989df183df01b3e8a0aad5dffbe"},
                {"t10k-images-idx3-ubyte.gz", 4422102, "md5:bef4ecab320f06d8554ea6380940ec79"},
                {"t10k-labels-idx1-ubyte.gz", 5148, "md5:bb300cfdad3c16e7a12a480ee83cd310"}},
     .local = IDX_LOCAL(26421880, 29515, 4422102, 5148)},
};
enum { SETS = sizeof sets / sizeof *sets };

const char *const *od_fetch_names(void) {
    static const char *names[SETS + 1];
    for (size_t i = 0; i < SETS; i++)
        names[i] = sets[i].name;
    return names;
}

/* ---- checksums -------------------------------------------------------------------------------------------------- */

static bool is_hex(const char *text, size_t digits) {
    return strlen(text) == digits && strspn(text, "0123456789abcdefABCDEF") == digits;
}

/* "md5:..." or "sha256:..." of a file into `found`, by the kind that `wanted` has. */
static od_status checksum_of(char found[CHECKSUM_TEXT], const char *path, const char *wanted, const atomic_int *stop) {
    enum { CHUNK = 1 << 20 };
    bool md5 = strncmp(wanted, "md5:", 4) == 0;
    MD5_CTX md5_context;
    SHA2_CTX sha_context;
    od_status status = OD_OK;
    FILE *file = fopen(path, "rbe");
    uint8_t *chunk = malloc(CHUNK);
    if (!file || !chunk) {
        status = od_fail(file ? OD_ERR_MEMORY : OD_ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        goto out;
    }
    MD5Init(&md5_context);
    SHA256Init(&sha_context);
    for (size_t got; (got = fread(chunk, 1, CHUNK, file)) > 0;) {
        if (stop && atomic_load(stop)) {
            status = od_fail(OD_ERR_INTERRUPTED, "interrupted while checking %s", path);
            goto out;
        }
        if (md5)
            MD5Update(&md5_context, chunk, got);
        else
            SHA256Update(&sha_context, chunk, got);
    }
    if (ferror(file)) {
        status = od_fail(OD_ERR_IO, "%s: cannot read", path);
        goto out;
    }
    memcpy(found, md5 ? "md5:" : "sha256:", md5 ? 5 : 8);
    if (md5)
        (void)MD5End(&md5_context, found + 4);
    else
        (void)SHA256End(&sha_context, found + 7);
out:
    if (file)
        (void)fclose(file);
    free(chunk);
    return status;
}

/* A comma list, one for each file. */
static od_status use_checksums(fetch_set *set, char *list) {
    char *rest = NULL;
    int n = 0, files = 0;
    while (files < MAX_FILES && set->remote[files].name)
        files++;
    for (char *one = strtok_r(list, ",", &rest); one; one = strtok_r(NULL, ",", &rest), n++) {
        bool good = (strncmp(one, "md5:", 4) == 0 && is_hex(one + 4, 32)) ||
                    (strncmp(one, "sha256:", 7) == 0 && is_hex(one + 7, 64));
        if (!good || n >= files)
            return od_fail(OD_ERR_USAGE,
                           "--checksum: expected md5:HEX or sha256:HEX for each of %d file%s, found '%.80s'", files,
                           files == 1 ? "" : "s", one);
        set->remote[n].checksum = one;
        set->remote[n].bytes = 0;
    }
    if (n != files)
        return od_fail(OD_ERR_USAGE, "--checksum: expected %d, with commas between, found %d", files, n);
    for (int i = 0; i < MAX_FILES; i++)
        set->local[i].bytes = 0;
    return OD_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info, (void)type, (void)where;
    (void)remove(path);
    return 0;
}

static void remove_tree(const char *path) {
    (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The first file that is missing in folder or of another size, or NULL. */
static const char *what_is_wrong(const fetch_set *set, const char *folder) {
    for (int i = 0; i < MAX_FILES && set->local[i].name; i++) {
        char path[PATH_MAX];
        struct stat info;
        int n = snprintf(path, sizeof path, "%s/%s", folder, set->local[i].name);
        uint64_t bytes = set->local[i].bytes;
        if (n < 0 || (size_t)n >= sizeof path || lstat(path, &info) || !S_ISREG(info.st_mode) ||
            (bytes && (uint64_t)info.st_size != bytes))
            return set->local[i].name;
    }
    return NULL;
}

/* ---- the work --------------------------------------------------------------------------------------------------- */

typedef struct work {
    fetch_set set; /* a copy, with the caller's address and checksums */
    const od_fetch_options *options;
    char *checksums;                              /* what the set's point into */
    char target[1024], partial[1100], made[1200]; /* DIR/FOLDER, DIR/.NAME.partial, the latter's new/ */
    int lock;
    od_meter meter;
} work;

/* The file's whole address. */
static char *address(const work *w, const remote_file *file) {
    const char *base = w->options->url && *w->options->url ? w->options->url : NULL;
    if (base && w->set.archive)
        return strdup(base);
    return od_path_join(base ? base : w->set.url, file->name);
}

/* One file into partial/, checked. A wrong checksum after a resumed download may only mean that its front was of
 * another version: then once more from the start. Nothing of a wrong file stays. */
static od_status get_file(work *w, const remote_file *file) {
    char path[1300], found[CHECKSUM_TEXT];
    const atomic_int *stop = w->options->stop;
    od_status status = OD_OK;
    (void)snprintf(path, sizeof path, "%s/%s", w->partial, file->name);
    if (access(path, F_OK) == 0 && !(status = checksum_of(found, path, file->checksum, stop)) &&
        strcasecmp(found, file->checksum) == 0)
        return OD_OK;
    if (status)
        return status;
    char *url = address(w, file);
    if (!url)
        return od_fail(OD_ERR_MEMORY, "no memory for an address");
    od_download d = {.url = url,
                     .path = path,
                     .expected = file->bytes,
                     .most = file->bytes ? file->bytes : FREE_BYTES,
                     .stop = stop,
                     .meter = &w->meter};
    for (bool again = true; again;) {
        bool resumed = false;
        od_log(OD_LOG_INFO, "downloading %s", url);
        if ((status = od_download_file(&d, &resumed)) || (status = checksum_of(found, path, file->checksum, stop)))
            break;
        again = strcasecmp(found, file->checksum) != 0 && resumed;
        if (strcasecmp(found, file->checksum) == 0)
            break;
        (void)unlink(path);
        if (!again)
            status = od_fail(OD_ERR_FORMAT, "%s: expected checksum %s, found %s; nothing of it was kept", url,
                             file->checksum, found);
    }
    if (status == OD_ERR_FORMAT)
        (void)unlink(path);
    free(url);
    return status;
}

/* partial/new/FOLDER from the downloaded files. */
static od_status make_folder(work *w) {
    char from[1300], to[1400];
    od_status status = OD_OK;
    remove_tree(w->made);
    if (w->set.archive) {
        (void)snprintf(from, sizeof from, "%s/%s", w->partial, w->set.remote[0].name);
        if ((status = od_dir_make(w->made)))
            return status;
        return od_unpack(from, w->made, w->set.folder, w->set.unpacked, w->options->stop, &w->meter);
    }
    (void)snprintf(to, sizeof to, "%s/%s", w->made, w->set.folder);
    if ((status = od_dir_make(to)))
        return status;
    for (int i = 0; i < MAX_FILES && w->set.remote[i].name; i++) {
        (void)snprintf(from, sizeof from, "%s/%s", w->partial, w->set.remote[i].name);
        (void)snprintf(to, sizeof to, "%s/%s/%s", w->made, w->set.folder, w->set.remote[i].name);
        if (rename(from, to))
            return od_fail(OD_ERR_IO, "%s: cannot rename: %s", from, strerror(errno));
    }
    return OD_OK;
}

static od_status put_in_place(work *w) {
    char made[1400];
    (void)snprintf(made, sizeof made, "%s/%s", w->made, w->set.folder);
    const char *wrong = what_is_wrong(&w->set, made);
    if (wrong)
        return od_fail(OD_ERR_FORMAT, "%s: the archive holds no such file of the right size: %s", w->set.name, wrong);
    if (rename(made, w->target))
        return od_fail(OD_ERR_IO, "%s: cannot rename to it: %s", w->target, strerror(errno));
    return OD_OK;
}

/* The folder for what is not finished; one process at a time. */
static od_status open_partial(work *w) {
    od_status status = od_dir_make(w->partial);
    if (status)
        return status;
    w->lock = open(w->partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (w->lock < 0 || flock(w->lock, LOCK_EX | LOCK_NB))
        return od_fail(OD_ERR_IO, "%s: %s", w->partial,
                       w->lock >= 0 && errno == EWOULDBLOCK ? "another offdiag fetch is at work here"
                                                            : strerror(errno));
    return OD_OK;
}

static od_status do_work(work *w, bool *fetched) {
    struct stat info;
    od_status status = OD_OK;
    const char *wrong = what_is_wrong(&w->set, w->target);
    if (!wrong)
        return OD_OK;
    if (lstat(w->target, &info) == 0)
        return od_fail(OD_ERR_IO, "%s: is there, but its %s is missing or of another size; move it away first",
                       w->target, wrong);
    if ((status = open_partial(w)))
        return status;
    for (int i = 0; i < MAX_FILES && w->set.remote[i].name && !status; i++)
        status = get_file(w, &w->set.remote[i]);
    if (!status && !(status = make_folder(w)))
        status = put_in_place(w);
    od_meter_end(&w->meter);
    remove_tree(w->made);
    if (status == OD_OK || status == OD_ERR_FORMAT)
        remove_tree(w->partial);
    else
        (void)rmdir(w->partial); /* if there is nothing to go on with */
    *fetched = status == OD_OK;
    return status;
}

od_status od_fetch(const char *name, const od_fetch_options *options, char path[1024], bool *fetched) {
    work w = {.options = options, .lock = -1, .meter = od_meter_begin(options->quiet)};
    const fetch_set *set = NULL;
    od_status status = OD_OK;
    *fetched = false;
    for (size_t i = 0; i < SETS; i++)
        if (strcmp(sets[i].name, name) == 0)
            set = &sets[i];
    if (!set)
        return od_fail(OD_ERR_USAGE, "no data set '%.64s' to fetch; the nearest one is %s", name,
                       od_nearest(name, od_fetch_names()));
    w.set = *set;
    if (options->checksum && *options->checksum) {
        w.checksums = strdup(options->checksum);
        if (!w.checksums)
            return od_fail(OD_ERR_MEMORY, "no memory for a checksum");
        if ((status = use_checksums(&w.set, w.checksums)))
            goto out;
    }
    int length = snprintf(w.target, sizeof w.target, "%s/%s", options->dir, set->folder);
    if (length < 0 || (size_t)length >= sizeof w.target - 16) {
        status = od_fail(OD_ERR_USAGE, "%.80s...: the path is too long", options->dir);
        goto out;
    }
    (void)snprintf(w.partial, sizeof w.partial, "%s/.%s.partial", options->dir, set->name);
    (void)snprintf(w.made, sizeof w.made, "%s/new", w.partial);
    status = do_work(&w, fetched);
    (void)snprintf(path, 1024, "%s", w.target);
out:
    if (w.lock >= 0)
        (void)close(w.lock);
    free(w.checksums);
    return status;
}
