/* The base layer: messages, Philox, files, JSON, names, options. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "base/options.h"
#include "base/rng.h"
#include "base/text.h"
#include "scratch.h"

#define CONTAINS(text, part) cr_assert(strstr((text), (part)) != NULL, "expected '%s' in: %s", (part), (text))

/* ---- messages ---------------------------------------------------------------------------------------------------- */

Test(status, message_and_prefix) {
    cr_assert_str_eq(od_error_message(), "");
    cr_assert_eq(od_fail(OD_ERR_IO, "file %d\n", 7), OD_ERR_IO);
    cr_assert_str_eq(od_error_message(), "file 7");
    cr_assert_eq(od_fail_in(OD_ERR_FORMAT, "loading %s: ", "x"), OD_ERR_FORMAT);
    cr_assert_str_eq(od_error_message(), "loading x: file 7");
    cr_assert_eq(od_fail(OD_ERR_IO, "%s again", od_error_message()), OD_ERR_IO);
    cr_assert_str_eq(od_error_message(), "loading x: file 7 again");
}

Test(status, long_messages) {
    enum { LONG = 20000, HUGE_ = 200000 };
    char *text = malloc(HUGE_ + 1);
    memset(text, 'a', HUGE_);
    text[HUGE_] = '\0';
    (void)od_fail(OD_ERR_BUILD, "%.*s!", LONG, text);
    cr_assert_eq(strlen(od_error_message()), LONG + 1);
    cr_assert_eq(od_error_message()[LONG], '!');
    (void)od_fail_in(OD_ERR_BUILD, "in: ");
    cr_assert_eq(strncmp(od_error_message(), "in: aaa", 7), 0);
    (void)od_fail(OD_ERR_BUILD, "%s", text);
    cr_assert_lt(strlen(od_error_message()), 65536);
    cr_assert_gt(strlen(od_error_message()), 60000);
    (void)od_fail(OD_ERR_BUILD, "short");
    cr_assert_str_eq(od_error_message(), "short");
    free(text);
}

static void *fail_elsewhere(void *first) {
    *(char *)first = od_error_message()[0];
    (void)od_fail(OD_ERR_IO, "%2000d", 1); /* grown: freed with the thread */
    return NULL;
}

Test(status, messages_belong_to_threads) {
    pthread_t thread;
    char first = 'x';
    (void)od_fail(OD_ERR_IO, "mine");
    cr_assert_eq(pthread_create(&thread, NULL, fail_elsewhere, &first), 0);
    (void)pthread_join(thread, NULL);
    cr_assert_eq(first, '\0');
    cr_assert_str_eq(od_error_message(), "mine");
}

Test(status, names) {
    for (int s = OD_OK; s <= OD_ERR_INTERRUPTED; s++)
        cr_assert_str_neq(od_status_name((od_status)s), "unknown status");
    cr_assert_str_eq(od_status_name((od_status)999), "unknown status");
}

/* ---- random numbers ---------------------------------------------------------------------------------------------- */

/* From Random123's kat_vectors, philox4x32 10. */
Test(rng, philox_known_answers) {
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        uint32_t out[4];
        od_philox(out, rows[r].counter, rows[r].key);
        for (int i = 0; i < 4; i++)
            cr_assert_eq(out[i], rows[r].out[i], "row %zu word %d: %08x", r, i, out[i]);
    }
}

Test(rng, u01_range) {
    cr_assert_eq(od_rng_u01(0), 0.0f);
    cr_assert_eq(od_rng_u01(255), 0.0f);
    cr_assert_eq(od_rng_u01(256), 0x1p-24f);
    cr_assert_eq(od_rng_u01(UINT32_MAX), 1.0f - 0x1p-24f);
}

/* Moments within five standard errors. */
Test(rng, distributions) {
    enum { N = 100001 };
    float *x = malloc(N * sizeof *x);
    double mean = 0, square = 0, fourth = 0, neighbour = 0;
    od_rng_fill_uniform(x, N, -1, 3, 42, 1);
    for (int i = 0; i < N; i++) {
        cr_assert(x[i] >= -1 && x[i] <= 3);
        mean += x[i] / N;
        square += (x[i] - 1) * (x[i] - 1) / N;
    }
    cr_assert_float_eq(mean, 1, 5 * sqrt(16.0 / 12 / N));
    cr_assert_float_eq(square, 16.0 / 12, 0.03);
    od_rng_fill_normal(x, N, 2, 42, 2);
    mean = square = 0;
    for (int i = 0; i < N; i++) {
        double z = x[i] / 2;
        cr_assert(isfinite(x[i]));
        mean += z / N;
        square += z * z / N;
        fourth += z * z * z * z / N;
        neighbour += i ? z * x[i - 1] / 2 / N : 0;
    }
    cr_assert_float_eq(mean, 0, 5 / sqrt(N));
    cr_assert_float_eq(square, 1, 5 * sqrt(2.0 / N));
    cr_assert_float_eq(fourth, 3, 5 * sqrt(96.0 / N));
    cr_assert_float_eq(neighbour, 0, 5 / sqrt(N));
    free(x);
}

Test(rng, fills_depend_on_seed_and_stream_only) {
    float a[11], b[11];
    od_rng_fill_normal(a, 11, 1, 5, 6);
    od_rng_fill_normal(b, 7, 1, 5, 6);
    cr_assert_eq(memcmp(a, b, 7 * sizeof *a), 0); /* a prefix, whatever the length */
    od_rng_fill_normal(b, 11, 1, 5, 7);
    cr_assert_neq(memcmp(a, b, sizeof a), 0);
    od_rng_fill_normal(b, 11, 1, 5 + (1ull << 40), 6);
    cr_assert_neq(memcmp(a, b, sizeof a), 0);
    od_rng_fill_normal(b, 11, 1, 5, 6 + (1ull << 40));
    cr_assert_neq(memcmp(a, b, sizeof a), 0);
}

Test(rng, permutation) {
    enum { N = 1000 };
    uint32_t a[N], b[N];
    bool seen[N] = {false};
    double moved = 0;
    od_rng_permutation(a, N, 1, 2);
    for (int i = 0; i < N; i++) {
        cr_assert(a[i] < N && !seen[a[i]]);
        seen[a[i]] = true;
        moved += fabs((double)a[i] - i) / N;
    }
    cr_assert_float_eq(moved, N / 3.0, 40); /* the mean distance of two random places */
    od_rng_permutation(b, N, 1, 2);
    cr_assert_eq(memcmp(a, b, sizeof a), 0);
    od_rng_permutation(b, N, 1, 3);
    cr_assert_neq(memcmp(a, b, sizeof a), 0);
    od_rng_permutation(a, 0, 1, 2);
    od_rng_permutation(a, 1, 1, 2);
    cr_assert_eq(a[0], 0);
}

/* All six orders of three, equally often. */
Test(rng, permutation_is_fair) {
    enum { DRAWS = 6000 };
    int counts[27] = {0};
    for (uint64_t s = 0; s < DRAWS; s++) {
        uint32_t p[3];
        od_rng_permutation(p, 3, s, 0);
        counts[p[0] * 9 + p[1] * 3 + p[2]]++;
    }
    double chi = 0;
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < 3; b++)
            if (a != b) {
                double off = counts[a * 9 + b * 3 + (3 - a - b)] - DRAWS / 6.0;
                chi += off * off / (DRAWS / 6.0);
            }
    cr_assert_lt(chi, 20.5); /* five degrees of freedom: 1 in 1000 */
}

/* ---- hashes and names -------------------------------------------------------------------------------------------- */

Test(hash, known_answer_and_lengths) {
    char out[OD_SHA256_TEXT], other[OD_SHA256_TEXT];
    od_sha256(out, "abc", 3);
    cr_assert_str_eq(out, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    od_sha256(out, NULL, 0);
    cr_assert_str_eq(out, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    od_sha256_strings(out, (const char *const[]){"ab", "c"}, 2);
    od_sha256_strings(other, (const char *const[]){"a", "bc"}, 2);
    cr_assert_str_neq(out, other);
}

Test(text, list_holds) {
    cr_assert(od_list_holds("", "conv") && od_list_holds("conv", "conv") && od_list_holds("norm,conv", "conv"));
    cr_assert(od_list_holds("conv,norm", "conv") && od_list_holds("convolve,conv", "conv"));
    cr_assert(!od_list_holds("convolve", "conv") && !od_list_holds("preconv,x", "conv") && !od_list_holds("x", ""));
}

Test(text, nearest) {
    const char *const names[] = {"simsiam", "byol", "linear", NULL}, *const none[] = {NULL};
    cr_assert_eq(od_edit_distance("kitten", "sitting"), 3);
    cr_assert_eq(od_edit_distance("", "abc"), 3);
    cr_assert_eq(od_edit_distance("ABC", "abc"), 0);
    cr_assert_str_eq(od_nearest("simsaim", names), "simsiam");
    cr_assert_str_eq(od_nearest("BYOl", names), "byol");
    cr_assert_null(od_nearest("x", none));
    cr_assert_null(od_nearest_name("quadratic", names));
    cr_assert_str_eq(od_nearest_name("linaer", names), "linear");
    char longer[300];
    memset(longer, 'z', 299);
    longer[299] = '\0';
    cr_assert_not_null(od_nearest(longer, names));
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static int count_entries(void) {
    int n = 0;
    FILE *list;
    char command[600], line[300];
    (void)snprintf(command, sizeof command, "ls -A %s", scratch_dir);
    list = popen(command, "r");
    while (list && fgets(line, sizeof line, list))
        n++;
    (void)pclose(list);
    return n;
}

Test(file, atomic_write, .init = scratch_init, .fini = scratch_remove) {
    char *data;
    size_t bytes;
    const char *path = scratch_path("a");
    cr_assert_eq(od_file_write_atomic(path, "first", 5), OD_OK, "%s", od_error_message());
    cr_assert_eq(od_file_write_atomic_parts(path, (od_part[]){{"sec", 3}, {NULL, 0}, {"ond!", 4}}, 3), OD_OK);
    cr_assert_eq(od_file_read(path, 100, &data, &bytes), OD_OK);
    cr_assert_eq(bytes, 7);
    cr_assert_str_eq(data, "second!");
    free(data);
    cr_assert_eq(count_entries(), 1, "no temporary file is left");
}

Test(file, failed_write_keeps_the_old_file, .init = scratch_init, .fini = scratch_remove) {
    struct stat info;
    cr_assert_eq(mkdir(scratch_path("dir"), 0755), 0);
    cr_assert_eq(od_file_write_atomic(scratch_path("dir"), "x", 1), OD_ERR_IO); /* a directory can't be replaced */
    CONTAINS(od_error_message(), "dir: cannot write");
    cr_assert_eq(count_entries(), 1, "no temporary file is left");
    cr_assert(stat(scratch_path("dir"), &info) == 0 && S_ISDIR(info.st_mode));
    cr_assert_eq(od_file_write_atomic(scratch_path("no/such"), "x", 1), OD_ERR_IO);
    CONTAINS(od_error_message(), "no/such: cannot create");
}

Test(file, reading_refuses, .init = scratch_init, .fini = scratch_remove) {
    char *data;
    cr_assert_eq(od_file_read(scratch_path("none"), 10, &data, NULL), OD_ERR_IO);
    CONTAINS(od_error_message(), "none: cannot open");
    cr_assert_eq(od_file_read(scratch_dir, 10, &data, NULL), OD_ERR_FORMAT);
    CONTAINS(od_error_message(), "regular file");
    cr_assert_eq(od_file_write_atomic(scratch_path("big"), "0123456789a", 11), OD_OK);
    cr_assert_eq(od_file_read(scratch_path("big"), 10, &data, NULL), OD_ERR_FORMAT);
    CONTAINS(od_error_message(), "at most 10 bytes, found 11");
    cr_assert_eq(mkfifo(scratch_path("fifo"), 0600), 0);
    cr_assert_eq(od_file_read(scratch_path("fifo"), 10, &data, NULL), OD_ERR_FORMAT);
    cr_assert_null(data);
}

Test(file, directories, .init = scratch_init, .fini = scratch_remove) {
    struct stat info;
    cr_assert_eq(od_dir_make(scratch_path("a/b//c/")), OD_OK, "%s", od_error_message());
    cr_assert_eq(od_dir_make(scratch_path("a/b/c")), OD_OK);
    cr_assert(stat(scratch_path("a/b/c"), &info) == 0 && S_ISDIR(info.st_mode));
    cr_assert_eq(od_file_write_atomic(scratch_path("f"), "", 0), OD_OK);
    cr_assert_eq(od_dir_make(scratch_path("f")), OD_ERR_IO);
    cr_assert_eq(od_dir_make(scratch_path("f/g")), OD_ERR_IO);
}

Test(file, cache_directory_is_private, .init = scratch_init, .fini = scratch_remove) {
    struct stat info;
    char *dir;
    cr_assert_eq(od_cache_dir(&dir), OD_OK, "%s", od_error_message());
    cr_assert_str_eq(dir, scratch_path("offdiag"));
    cr_assert(stat(dir, &info) == 0 && (info.st_mode & 0777) == 0700);
    cr_assert_eq(chmod(dir, 0755), 0);
    free(dir);
    cr_assert_eq(od_cache_dir(&dir), OD_ERR_IO);
    CONTAINS(od_error_message(), "0700");
    cr_assert_null(dir);
    cr_assert_eq(rmdir(scratch_path("offdiag")), 0);
    cr_assert_eq(mkdir(scratch_path("elsewhere"), 0700), 0);
    cr_assert_eq(symlink(scratch_path("elsewhere"), scratch_path("offdiag")), 0);
    cr_assert_eq(od_cache_dir(&dir), OD_ERR_IO);
    CONTAINS(od_error_message(), "symbolic link");
    (void)unsetenv("XDG_CACHE_HOME");
    (void)unsetenv("HOME");
    cr_assert_eq(od_cache_dir(&dir), OD_ERR_IO);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

Test(json, round_trip_and_errors, .init = scratch_init, .fini = scratch_remove) {
    json_t *json = json_pack("{s:i, s:f}", "a", 3, "b", 0.1), *again;
    cr_assert_eq(od_json_write_atomic(scratch_path("x.json"), json), OD_OK);
    cr_assert_eq(od_json_read(scratch_path("x.json"), &again), OD_OK, "%s", od_error_message());
    cr_assert(json_equal(json, again));
    json_decref(json);
    json_decref(again);
    cr_assert_eq(od_json_parse("{\n\"a\": 1,\n}", 12, "f.json", &again), OD_ERR_FORMAT);
    CONTAINS(od_error_message(), "f.json: line 3: expected JSON");
    cr_assert_eq(od_json_parse("[1]", 3, "f.json", &again), OD_ERR_FORMAT);
    CONTAINS(od_error_message(), "expected a JSON object, found an array");
    cr_assert_eq(od_json_parse("{\"a\":1,\"a\":2}", 13, "f.json", &again), OD_ERR_FORMAT);
    CONTAINS(od_error_message(), "duplicate");
    cr_assert_null(again);
    cr_assert_eq(od_json_read(scratch_path("none.json"), &again), OD_ERR_IO);
    CONTAINS(od_error_message(), "none.json");
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

typedef struct settings {
    bool quiet;
    int epochs, head;
    uint64_t seed;
    double lr;
    char out[16];
} settings;

static const char *const heads[] = {"none", "offdiag", "linear", NULL};
static const od_option rows[] = {
    OD_OPT_HEADING("Training"),
    OD_OPT_FLAG(settings, quiet, "quiet", "no bar"),
    OD_OPT_INT(settings, epochs, "epochs", 1, 1000, "epochs"),
    OD_OPT_U64(settings, seed, "seed", "seed"),
    OD_OPT_DOUBLE(settings, lr, "head-lr", 0, 10, "learning rate"),
    OD_OPT_CHOICE(settings, head, "head", heads, "head"),
    OD_OPT_STRING(settings, out, "out", "DIR", "folder"),
};

static od_status parse(settings *s, int max, od_positionals *p, int argc, const char *const *argv) {
    bool help;
    od_options table = {rows, sizeof rows / sizeof *rows, s};
    *p = (od_positionals){.max = max};
    return od_options_parse(&table, 1, p, argc, (char *const *)argv, &help);
}
#define PARSE(s, max, p, ...)                                                                                          \
    parse((s), (max), (p), (int)(sizeof((const char *[]){"cmd", __VA_ARGS__}) / sizeof(char *)),                       \
          (const char *[]){"cmd", __VA_ARGS__})

Test(options, values) {
    settings s = {.epochs = 1};
    od_positionals p;
    cr_assert_eq(PARSE(&s, 2, &p, "--epochs", "20", "x", "--head-lr=1e-3", "--quiet", "--head=linear", "--seed",
                       "9223372036854775807", "--out", "dir", "--", "--y"),
                 OD_OK, "%s", od_error_message());
    cr_assert_eq(s.epochs, 20);
    cr_assert_eq(s.lr, 1e-3);
    cr_assert(s.quiet);
    cr_assert_eq(s.head, 2);
    cr_assert_eq(s.seed, INT64_MAX);
    cr_assert_str_eq(s.out, "dir");
    cr_assert_eq(p.count, 2);
    cr_assert_str_eq(p.values[1], "--y");
    cr_assert_eq(PARSE(&s, 0, &p, "--quiet=false"), OD_OK);
    cr_assert_not(s.quiet);
}

Test(options, mistakes) {
    static const struct {
        const char *argument, *message;
    } bad[] = {
        {"--epoch=3", "unknown option --epoch; the nearest one is --epochs"},
        {"--epochs=0", "--epochs: expected an integer from 1 to 1000, found '0'"},
        {"--epochs=1001", "found '1001'"},
        {"--epochs=", "found ''"},
        {"--epochs= 3", "found ' 3'"},
        {"--epochs=3x", "found '3x'"},
        {"--epochs=1.5", "found '1.5'"},
        {"--epochs=99999999999999999999", "found '99999999999999999999'"},
        {"--seed=-1", "found '-1'"},
        {"--seed=9223372036854775808", "2^63 - 1"},
        {"--head-lr=nan", "found 'nan'"},
        {"--head-lr=inf", "found 'inf'"},
        {"--head-lr=11", "a number from 0 to 10"},
        {"--head=lineer", "expected one of none, offdiag, linear, found 'lineer'; the nearest one is linear"},
        {"--out=0123456789abcdef", "text of at most 15 bytes"},
        {"--quiet=maybe", "true or false"},
        {"--epochs", "found the end of the command"},
        {"-q", "unknown option -q"},
        {"word", "unexpected argument 'word'"},
        {"--=3", "unknown option"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        settings s = {.epochs = 7}, before = s;
        od_positionals p;
        cr_assert_eq(PARSE(&s, 0, &p, bad[i].argument), OD_ERR_USAGE, "%s", bad[i].argument);
        CONTAINS(od_error_message(), bad[i].message);
        cr_assert_eq(memcmp(&s, &before, sizeof s), 0, "%s changed a field", bad[i].argument);
    }
}

Test(options, json) {
    settings s = {.epochs = 3, .head = 1, .seed = 12, .lr = 0.1, .out = "runs"}, t = {0};
    od_options from = {rows, sizeof rows / sizeof *rows, &s}, to = {rows, sizeof rows / sizeof *rows, &t};
    json_t *json = json_object();
    cr_assert_eq(od_options_to_json(&from, json), OD_OK);
    cr_assert_str_eq(json_string_value(json_object_get(json, "head")), "offdiag");
    cr_assert_eq(od_options_from_json(&to, json, "f"), OD_OK, "%s", od_error_message());
    cr_assert(t.epochs == 3 && t.head == 1 && t.seed == 12 && t.lr == 0.1 && strcmp(t.out, "runs") == 0);
    json_decref(json);
}

Test(options, json_mistakes) {
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"{\"epoch\": 3}", "f: unknown key \"epoch\"; the nearest one is \"epochs\""},
        {"{\"head_lrs\": 3}", "the nearest one is \"head_lr\""},
        {"{\"epochs\": \"3\"}", "f: \"epochs\": expected an integer from 1 to 1000, found \"3\""},
        {"{\"epochs\": 2.5}", "found 2.5"},
        {"{\"epochs\": 4294967297}", "found 4.29497e+09"},
        {"{\"head_lr\": [1]}", "found an array"},
        {"{\"head\": \"x\"}", "one of none, offdiag, linear"},
        {"{\"quiet\": 1}", "true or false"},
        {"{\"out\": null}", "found null"},
        {"{\"seed\": -5}", "found -5"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        settings s = {0};
        od_options table = {rows, sizeof rows / sizeof *rows, &s};
        json_t *json;
        cr_assert_eq(od_json_parse(bad[i].text, strlen(bad[i].text), "t", &json), OD_OK, "%s", od_error_message());
        cr_assert_eq(od_options_from_json(&table, json, "f"), OD_ERR_FORMAT, "%s", bad[i].text);
        CONTAINS(od_error_message(), bad[i].message);
        json_decref(json);
    }
}

/* ---- log --------------------------------------------------------------------------------------------------------- */

Test(log, topics) {
    (void)unsetenv("OFFDIAG_LOG");
    cr_assert_not(od_log_topic_enabled("cache"));
    (void)setenv("OFFDIAG_LOG", "info,cache", 1);
    cr_assert(od_log_topic_enabled("cache"));
    cr_assert_not(od_log_topic_enabled("cach"));
    cr_assert_not(od_log_topic_enabled("build"));
    (void)setenv("OFFDIAG_LOG", "debug", 1);
    cr_assert(od_log_topic_enabled("build"));
}
