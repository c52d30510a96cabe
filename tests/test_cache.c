/* The cache of program binaries: what its keys hold, and its bound. That what it gives is checked: test_device.c. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "base/file.h"
#include "device/internal.h"
#include "scratch.h"

#define MUST(call) cr_assert_eq((call), OD_OK, "%s: %s", #call, od_error_message())

TestSuite(cache, .init = scratch_init, .fini = scratch_remove, .timeout = 60);

/* A driver that makes other code when a variable of its own is set: no binary of the one serves the other. */
Test(cache, keys_hold_the_drivers_settings) {
    static const struct {
        const char *name, *value;
        bool other;
    } cases[] = {
        {"POCL_WORK_GROUP_METHOD", "loopvec", true},
        {"POCL_EXTRA_BUILD_FLAGS", "-DX=1", true},
        {"CL_CONFIG_CPU_VECTORIZER_MODE", "1", true},
        {"LP_NATIVE_VECTOR_WIDTH", "128", true},
        {"POCL_DEBUG", "0", false},
        {"POCL_CACHE_DIR", "/tmp", false},
        {"PATH_OF_SOMEBODY", "1", false},
    };
    od_device *device;
    MUST(od_device_open(getenv("OFFDIAG_TEST_DEVICE"), NULL, &device));
    char plain[65], key[65];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        (void)unsetenv(cases[i].name);
    od_cache_key(plain, device, "source", "options");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        (void)setenv(cases[i].name, cases[i].value, 1);
        od_cache_key(key, device, "source", "options");
        cr_assert_eq(strcmp(key, plain) != 0, cases[i].other, "%s", cases[i].name);
        (void)unsetenv(cases[i].name);
    }
    od_cache_key(key, device, "source", "options");
    cr_assert_str_eq(key, plain);
    (void)setenv("POCL_A", "1", 1); /* in any order */
    (void)setenv("POCL_B", "2", 1);
    od_cache_key(plain, device, "source", "options");
    (void)unsetenv("POCL_A");
    (void)setenv("POCL_A", "1", 1);
    od_cache_key(key, device, "source", "options");
    cr_assert_str_eq(key, plain);
    od_device_close(device);
}

/* ---- the cache's bound ------------------------------------------------------------------------------------------- */

enum { ENTRY_BYTES = 100 << 10 };

/* The key of made-up entry i, and its content: the same byte throughout. */
static const char *key_of(int i) {
    static char key[65];
    (void)snprintf(key, sizeof key, "%064x", i);
    return key;
}

static void store(int i) {
    unsigned char *bytes = malloc(ENTRY_BYTES);
    cr_assert_not_null(bytes);
    memset(bytes, i, ENTRY_BYTES);
    od_cache_store(key_of(i), bytes, ENTRY_BYTES);
    free(bytes);
}

/* Whether entry i is there; it must be whole. */
static bool is_there(int i) {
    size_t bytes = 0;
    bool rejected;
    unsigned char *found = od_cache_load(key_of(i), &bytes, &rejected);
    cr_assert_not(rejected);
    cr_assert(!found || (bytes == ENTRY_BYTES && found[0] == (unsigned char)i && found[bytes - 1] == (unsigned char)i));
    free(found);
    return found != NULL;
}

static const char *entry_file(int i) {
    static char name[96];
    (void)snprintf(name, sizeof name, "offdiag/%s.bin", key_of(i));
    return scratch_path(name);
}

/* As if it was last used so long ago. */
static void make_older(const char *path, long seconds) {
    const struct timespec times[2] = {{.tv_sec = time(NULL) - seconds}, {.tv_sec = time(NULL) - seconds}};
    cr_assert_eq(utimensat(AT_FDCWD, path, times, 0), 0);
}

static uint64_t bytes_in_cache(void) {
    uint64_t sum = 0;
    DIR *dir = opendir(scratch_path("offdiag"));
    cr_assert_not_null(dir);
    for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
        struct stat about;
        if (e->d_name[0] != '.' && fstatat(dirfd(dir), e->d_name, &about, 0) == 0)
            sum += (uint64_t)about.st_size;
    }
    (void)closedir(dir);
    return sum;
}

Test(cache, keeps_what_was_used_last) {
    (void)setenv("OFFDIAG_CACHE_MIB", "1", 1); /* room for ten */
    for (int i = 0; i < 10; i++) {
        store(i);
        make_older(entry_file(i), 1000 - i);
    }
    MUST(od_file_write_atomic(scratch_path("offdiag/notes.txt"), "mine", 4));
    char half_written[96], dead[96];
    (void)snprintf(half_written, sizeof half_written, "offdiag/%s.bin.tmp-1-0", key_of(50));
    (void)snprintf(dead, sizeof dead, "offdiag/%s.bin.tmp-2-0", key_of(51));
    MUST(od_file_write_atomic(scratch_path(half_written), "?", 1));
    MUST(od_file_write_atomic(scratch_path(dead), "?", 1));
    make_older(scratch_path(dead), 100000);
    make_older(scratch_path("offdiag/notes.txt"), 100000);
    for (int i = 0; i < 10; i++)
        cr_assert_eq(access(entry_file(i), F_OK), 0, "all fit: %d", i);
    cr_assert(is_there(0), "used again: now the newest");
    store(10); /* one too many: three go, for room */
    for (int i = 0; i < 11; i++)
        cr_assert_eq(access(entry_file(i), F_OK) == 0, i == 0 || i > 3, "entry %d", i);
    cr_assert_eq(access(scratch_path("offdiag/notes.txt"), F_OK), 0, "not ours");
    cr_assert_eq(access(scratch_path(half_written), F_OK), 0, "another process may be writing it");
    cr_assert_neq(access(scratch_path(dead), F_OK), 0, "nobody writes it any more");
    (void)setenv("OFFDIAG_CACHE_MIB", "0", 1);
    store(11);
    cr_assert_not(is_there(11), "nothing is kept");
    (void)setenv("OFFDIAG_CACHE_MIB", "many", 1); /* as if it was not set */
    store(11);
    cr_assert(is_there(11));
}

/* Several at once: entries come and go, and none is ever found that is not whole. */
Test(cache, several_processes) {
    enum { PROCESSES = 4, ROUNDS = 40, ENTRIES = 25 };
    (void)setenv("OFFDIAG_CACHE_MIB", "1", 1);
    pid_t children[PROCESSES];
    for (int p = 0; p < PROCESSES; p++) {
        children[p] = fork();
        cr_assert_geq(children[p], 0);
        if (children[p] > 0)
            continue;
        bool whole = true;
        for (int round = 0; round < ROUNDS && whole; round++) {
            const int i = (7 * p + 3 * round) % ENTRIES;
            size_t bytes = 0;
            bool rejected;
            unsigned char *found = od_cache_load(key_of(i), &bytes, &rejected);
            whole = !rejected && (!found || (bytes == ENTRY_BYTES && found[ENTRY_BYTES / 2] == i));
            free(found);
            if (!found)
                store(i);
        }
        _exit(whole ? 0 : 1);
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status = -1;
        cr_assert_eq(waitpid(children[p], &status, 0), children[p]);
        cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "process %d: status %d", p, status);
    }
    store(99);
    cr_assert(is_there(99));
    cr_assert_leq(bytes_in_cache(), 1 << 20);
}
