/* What goes wrong around training, end to end: bad files and flags, numbers that overflow, memory, a full disk,
 * devices. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/safetensors.h"
#include "harness.h"
#include "run_cli.h"

TestSuite(faults, .init = cli_setup, .fini = cli_teardown);

/* One line on stderr. */
static void expect_line(const cli_result *r, int code, const char *words) {
    cli_expect(r, code, words);
    const char *newline = strchr(r->err, '\n');
    cr_assert(newline && newline[1] == '\0', "expected one line, found:\n%s", r->err);
}

static void expect_absent(const char *name) {
    cr_assert_neq(access(in_scratch("%s", name), F_OK), 0, "%s was made", name);
}

/* ---- bytes that must not change --------------------------------------------------------------------------------- */

static const char *const run_files[] = {"checkpoint.safetensors", "metrics.jsonl", "config.json"};
enum { RUN_FILES = sizeof run_files / sizeof *run_files };

typedef struct snapshot {
    char *data[RUN_FILES];
    size_t bytes[RUN_FILES];
} snapshot;

static snapshot take_snapshot(const char *run) {
    snapshot s = {0};
    for (int i = 0; i < RUN_FILES; i++)
        s.data[i] = slurp(in_scratch("%s/%s", run, run_files[i]), &s.bytes[i]);
    return s;
}

static void expect_unchanged(const snapshot *before, const char *run, int files) {
    snapshot now = take_snapshot(run);
    for (int i = 0; i < files; i++) {
        cr_assert_eq(now.bytes[i], before->bytes[i], "%s/%s changed", run, run_files[i]);
        cr_assert_arr_eq(now.data[i], before->data[i], before->bytes[i], "%s/%s changed", run, run_files[i]);
    }
    cr_assert_eq(files_with(in_scratch("%s", run), ".tmp-"), 0);
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static void expect_finite(const char *run) {
    od_safetensors *file = NULL;
    OD_MUST(od_safetensors_open(in_scratch("%s/checkpoint.safetensors", run), &file));
    for (size_t i = 0; i < od_safetensors_count(file); i++) {
        const od_tensor *t = od_safetensors_at(file, i);
        float *x = malloc(t->bytes + 1);
        OD_MUST(od_safetensors_read(file, t, x));
        for (size_t j = 0; j < t->count; j++)
            cr_assert(isfinite(x[j]), "%s[%zu] is %g", t->name, j, x[j]);
        free(x);
    }
    od_safetensors_close(file);
}

/* A weight decay of 1 at a rate of 1000 multiplies the weights by -999 a step: they overflow within a dozen. */
Test(faults, an_overflow_stops_and_keeps_the_last_good_checkpoint) {
    static const char *const heads[] = {"--head offdiag --checkpoint-every 1",
                                        "--head mlp --loss cosine --method byol --checkpoint-every 2"};
    const char blow_up[] = "--lr 1000 --weight-decay 1 --warmup 0 --quiet --steps 100";
    char more[256];
    for (int i = 0; i < 2; i++) {
        const char *run = i ? "b" : "a";
        (void)snprintf(more, sizeof more, "%s %s", blow_up, heads[i]);
        cli_result r = tiny_train(run, more);
        expect_line(&r, 1, " at step |last good checkpoint stays in");
        expect_finite(run);
        r = cli("eval %s", in_scratch("%s", run));
        cli_expect(&r, 0, "");
    }
    cli_result r = tiny_train("c", blow_up); /* it ends before the first checkpoint */
    expect_line(&r, 1, "the loss became |at step |no checkpoint");
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

/* eval, export and --resume of the run "bad" end with one line that names its checkpoint; the file stays as it is. */
static void expect_refused(const char *words) {
    const char *bad = in_scratch("bad"), *out = in_scratch("out.safetensors");
    snapshot before = take_snapshot("bad");
    cli_result r[] = {cli("eval %s", bad), cli("export %s --out %s", bad, out),
                      cli("train --resume --quiet --out %s", bad)};
    for (int i = 0; i < 3; i++) {
        expect_line(&r[i], 1, in_scratch("bad/checkpoint.safetensors"));
        expect_line(&r[i], 1, words);
    }
    expect_absent("out.safetensors");
    expect_unchanged(&before, "bad", before.data[0] ? RUN_FILES : 0);
}

static void put_bad(const void *data, size_t bytes) {
    spew(in_scratch("bad/checkpoint.safetensors"), data, bytes);
}

/* Rewrite "good" into "bad" with one tensor left out, reshaped or of another type, or with one metadata value replaced
 * (`found` by `instead` in the options). */
typedef struct change {
    const char *leave_out, *reshape, *retype, *found, *instead;
} change;

static bool is(const char *a, const char *b) {
    return a && strcmp(a, b) == 0;
}

static void add_changed(od_safetensors_writer *writer, const od_safetensors *file, const od_tensor *t,
                        const change *c) {
    size_t shape[OD_TENSOR_MAX_RANK] = {0};
    void *data = malloc(2 * t->bytes + 1); /* of the test's process */
    OD_MUST(od_safetensors_read(file, t, data));
    memcpy(shape, t->shape, sizeof shape);
    if (is(c->reshape, t->name))
        shape[0]++;
    OD_MUST(od_safetensors_add(writer, t->name, is(c->retype, t->name) ? OD_I32 : t->dtype, t->rank, shape, data));
}

static void write_changed(change c) {
    static const char *const keys[] = {"format", "version", "options", "state"};
    od_safetensors *file = NULL;
    od_safetensors_writer *writer = NULL;
    OD_MUST(od_safetensors_open(in_scratch("good/checkpoint.safetensors"), &file));
    OD_MUST(od_safetensors_writer_create(&writer));
    for (size_t i = 0; i < od_safetensors_count(file); i++)
        if (!is(c.leave_out, od_safetensors_at(file, i)->name))
            add_changed(writer, file, od_safetensors_at(file, i), &c);
    for (int i = 0; i < 4; i++) {
        const char *value = od_safetensors_metadata(file, keys[i]);
        const char *at = c.found ? strstr(value, c.found) : NULL;
        char *text = NULL;
        if (at)
            cr_assert_gt(asprintf(&text, "%.*s%s%s", (int)(at - value), value, c.instead, at + strlen(c.found)), 0);
        else
            text = strdup(value);
        if (!is(c.leave_out, keys[i]))
            OD_MUST(od_safetensors_add_metadata(writer, keys[i], text));
        free(text);
    }
    OD_MUST(od_safetensors_write(writer, in_scratch("bad/checkpoint.safetensors")));
    od_safetensors_writer_destroy(writer);
    od_safetensors_close(file);
}

/* A run in "good", and "bad" with its other files. */
static void make_good_and_bad(const char *options) {
    cli_result r = tiny_train("good", options);
    size_t bytes = 0;
    cli_expect(&r, 0, "");
    cr_assert_eq(mkdir(in_scratch("bad"), 0700), 0);
    for (int i = 1; i < RUN_FILES; i++) {
        char *data = slurp(in_scratch("good/%s", run_files[i]), &bytes);
        spew(in_scratch("bad/%s", run_files[i]), data, bytes);
        free(data);
    }
}

Test(faults, a_damaged_checkpoint_is_refused) {
    size_t bytes = 0;
    unsigned char garbage[4096];
    unsigned seed = 99;
    make_good_and_bad("--steps 2 --method byol");
    expect_refused("No such file"); /* none at all */
    char *good = slurp(in_scratch("good/checkpoint.safetensors"), &bytes);
    put_bad("", 0);
    expect_refused("expected|found 0");
    put_bad(good, bytes - 1);
    expect_refused("expected|found");
    put_bad(good, bytes / 2);
    expect_refused("expected|found");
    put_bad(good, 20);
    expect_refused("expected|found");
    for (size_t i = 0; i < sizeof garbage; i++)
        garbage[i] = (unsigned char)((seed = seed * 1664525u + 1013904223u) >> 24);
    put_bad(garbage, sizeof garbage);
    expect_refused("expected|found");
    for (int i = 0; i < 4; i++) { /* a bit of the length, and of the header's structure */
        static const size_t at[] = {1, 7, 8, 9};
        good[at[i]] ^= 0x20;
        put_bad(good, bytes);
        expect_refused("expected");
        good[at[i]] ^= 0x20;
    }
    put_bad(good, bytes); /* the good one works: what was refused was the damage */
    cli_result r = cli("export %s --out %s", in_scratch("bad"), in_scratch("out.safetensors"));
    cli_expect(&r, 0, "");
}

/* Any byte of the header may be wrong: an exit code, never a signal. */
Test(faults, a_flipped_bit_in_the_header_never_crashes) {
    size_t bytes = 0;
    make_good_and_bad("--steps 2");
    char *good = slurp(in_scratch("good/checkpoint.safetensors"), &bytes);
    size_t header = 8 + (unsigned char)good[0] + 256 * (size_t)(unsigned char)good[1];
    cr_assert_lt(header, bytes);
    for (size_t i = 0; i < 150; i++) {
        size_t at = i * header / 150;
        good[at] ^= (char)(1 << i % 8);
        put_bad(good, bytes);
        cli_result r = cli("export %s --out %s", in_scratch("bad"), in_scratch("out.safetensors"));
        cr_assert(r.code == 0 || r.code == 1, "byte %zu: code %d, signal %d: %s", at, r.code, r.signal, r.err);
        cr_assert(r.code == 0 || strstr(r.err, in_scratch("bad/checkpoint.safetensors")), "byte %zu: %s", at, r.err);
        good[at] ^= (char)(1 << i % 8);
    }
}

Test(faults, a_checkpoint_of_another_model_is_refused) {
    const char weight[] = "backbone.layer2.conv.weight";
    make_good_and_bad("--steps 2 --method byol");
    write_changed((change){.leave_out = weight});
    expect_refused("backbone.layer2.conv.weight|expected F32 (8, 8, 3, 3), found none");
    write_changed((change){.reshape = weight});
    expect_refused("backbone.layer2.conv.weight|expected F32 (8, 8, 3, 3), found F32 (9, 8, 3, 3)");
    write_changed((change){.retype = weight});
    expect_refused("backbone.layer2.conv.weight|expected F32|found I32");
    write_changed((change){.leave_out = "backbone.layer1.bn.running_var"});
    expect_refused("backbone.layer1.bn.running_var|found none");
    write_changed((change){.found = "\"width\":4", .instead = "\"width\":8"});
    expect_refused("expected F32 (8, 3, 3, 3), found F32 (4, 3, 3, 3)");
    write_changed((change){.found = "\"width\":4", .instead = "\"width\":400000"});
    expect_refused("width|expected an integer");
    write_changed((change){.found = "\"width\":4", .instead = "\"witdh\":4"});
    expect_refused("unknown key|width");
    write_changed((change){.found = "\"image_side\":14", .instead = "\"image_side\":-1"});
    expect_refused("state");
    write_changed((change){.leave_out = "options"});
    expect_refused("not a checkpoint of offdiag");
    write_changed((change){.found = "offdiag-checkpoint", .instead = "other"});
    expect_refused("expected format|found other");
    write_changed((change){.leave_out = "optimizer.momentum.projector.0.weight"}); /* only a resume needs that one */
    cli_result r = cli("train --resume --quiet --out %s", in_scratch("bad"));
    expect_line(&r, 1, "optimizer.momentum.projector.0.weight|found none|checkpoint.safetensors");
    write_changed((change){.leave_out = "momentum_backbone.layer1.conv.weight"});
    r = cli("train --resume --quiet --out %s", in_scratch("bad"));
    expect_line(&r, 1, "momentum_backbone.layer1.conv.weight|found none|checkpoint.safetensors");
    r = cli("eval %s", in_scratch("nowhere"));
    expect_line(&r, 1, "nowhere");
}

/* ---- data, configuration, flags --------------------------------------------------------------------------------- */

Test(faults, bad_data_is_one_line_and_leaves_nothing) {
    size_t bytes = 0;
    char path[512];
    (void)snprintf(path, sizeof path, "%s", in_scratch("data/train-images-idx3-ubyte"));
    char *good = slurp(path, &bytes);
    cli_result r = tiny_train("out", "--data /nonexistent");
    expect_line(&r, 1, "/nonexistent");
    expect_absent("out");
    spew(path, good, bytes - 100);
    r = tiny_train("out", "");
    expect_line(&r, 1, "train-images-idx3-ubyte|expected|found");
    expect_absent("out");
    good[4] = 5; /* 83,886,336 images */
    spew(path, good, bytes);
    r = tiny_train("out", "");
    expect_line(&r, 1, "train-images-idx3-ubyte|expected|found");
    good[4] = 0;
    good[11] = 29; /* rows */
    spew(path, good, bytes);
    r = tiny_train("out", "");
    expect_line(&r, 1, "train-images-idx3-ubyte|28 x 28|29");
    expect_absent("out");
    good[11] = 28;
    spew(path, good, bytes);
    r = tiny_train("out", "--batch 1024");
    expect_line(&r, 2, "--batch|1024|256");
    r = tiny_train("out", "--downsample 3");
    expect_line(&r, 1, "3|28");
    expect_absent("out");
}

Test(faults, a_bad_configuration_file_names_file_key_and_what_was_expected) {
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"{\"widht\": 8}", "widht|\"width\""},
        {"{\"epochs\": \"three\"}", "epochs|an integer|three"},
        {"{\"batch\": 1}", "batch|from 2 to|found 1"},
        {"{\"lr\": -1}", "lr|a number|-1"},
        {"{\"head\": \"ofdiag\"}", "head|one of|offdiag|ofdiag"},
        {"{\"quiet\": 3}", "quiet|true or false"},
        {"{\"width\": 8, \"width\": 8}", "width"},
        {"{\"width\": 8", "expected"},
        {"[1, 2]", "expected a JSON object"},
        {"", "config"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = in_scratch("config.json");
        spew(path, cases[i].text, strlen(cases[i].text));
        cli_result r = cli("train --config %s --out %s", path, in_scratch("out"));
        expect_line(&r, 1, in_scratch("config.json"));
        expect_line(&r, 1, cases[i].words);
    }
    cli_result r = cli("train --config %s --out %s", in_scratch("none.json"), in_scratch("out"));
    expect_line(&r, 1, "none.json");
    expect_absent("out");
}

Test(faults, a_wrong_flag_is_usage_with_the_nearest_name) {
    static const struct {
        const char *arguments, *words;
    } cases[] = {
        {"trian", "trian|'train'"},
        {"train --dateset mnist", "--dateset|--dataset"},
        {"train --dataset mnits --out x", "mnits|mnist"},
        {"train --preset quikstart", "quikstart|quickstart"},
        {"train --head offdig", "--head|offdig|nearest|offdiag"},
        {"train --encoder resnet81", "--encoder|resnet18"},
        {"train --method byl", "--method|byol"},
        {"train --loss cosin", "--loss|cosine"},
        {"train --epochs 0", "--epochs|from 1"},
        {"train --epochs three", "--epochs|an integer|three"},
        {"train --lr nan", "--lr|a number|nan"},
        {"train --epochs", "--epochs|end of the command"},
        {"train stray", "stray"},
        {"train --micro-batch 3 --batch 16 --out x", "--micro-batch"},
        {"train --resume", "--out"},
        {"eval", "RUN"},
        {"eval x --protocol kn", "--protocol|knn"},
        {"eval x y", "y"},
        {"export x", "--out"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cli_result r = cli("%s", cases[i].arguments);
        expect_line(&r, 2, cases[i].words);
        cr_assert_str_empty(r.out);
    }
}

/* ---- one directory, one run ------------------------------------------------------------------------------------- */

Test(faults, a_run_is_never_overwritten) {
    cli_result r = tiny_train("run", "--steps 2");
    cli_expect(&r, 0, "");
    snapshot before = take_snapshot("run");
    r = tiny_train("run", "--steps 2 --seed 5");
    expect_line(&r, 2, "holds a run already|--resume");
    r = cli("train --resume --quiet --out %s --lr 0.01", in_scratch("run"));
    expect_line(&r, 2, "--lr differs");
    r = cli("train --resume --quiet --out %s --head mlp --lr 0.05", in_scratch("run"));
    expect_line(&r, 2, "--head differs");
    r = cli("train --resume --quiet --out %s --seed 3", in_scratch("run"));
    expect_line(&r, 2, "--seed differs");
    expect_unchanged(&before, "run", RUN_FILES);
    r = cli("train --resume --out %s", in_scratch("new"));
    expect_line(&r, 1, "new");
    expect_absent("new");
}

Test(faults, two_runs_never_share_a_directory) {
    cli_child first = tiny_start("run", "--steps 100000 --checkpoint-every 3 --eval-every 0 --quiet");
    for (int i = 0; i < 20000 && metrics_count("run", "step") < 3; i++)
        (void)usleep(3000);
    cli_result second = tiny_train("run", "--quiet");
    expect_line(&second, 1, "another run is writing");
    second = cli("train --resume --quiet --out %s", in_scratch("run"));
    expect_line(&second, 1, "another run is writing");
    (void)kill(first.pid, SIGTERM);
    cli_result r = cli_wait(first);
    cli_expect(&r, 130, "interrupted");
}

/* ---- a full disk ------------------------------------------------------------------------------------------------ */

/* A checkpoint of several MB: what a driver writes while it builds a program is shorter than two thirds of that. */
static const char large[] = "--proj-hidden 4096 --proj-dim 128 --quiet";

Test(faults, a_failed_write_keeps_the_old_checkpoint) {
    struct stat info;
    cli_result r = tiny_interrupt("run", large, 8, SIGTERM);
    cli_expect(&r, 130, "interrupted");
    snapshot before = take_snapshot("run");
    cr_assert_eq(stat(in_scratch("run/checkpoint.safetensors"), &info), 0);
    cli_limit_file_size((size_t)info.st_size * 2 / 3);
    r = cli("train --resume --quiet --out %s", in_scratch("run"));
    cli_limit_file_size(0);
    expect_line(&r, 1, "checkpoint.safetensors|File too large");
    expect_unchanged(&before, "run", 1);
    r = cli("train --resume --quiet --out %s", in_scratch("run")); /* there is room again */
    cli_expect(&r, 0, "");
}

Test(faults, a_directory_without_permission_is_refused) {
    if (geteuid() == 0)
        cr_skip_test("root may write anywhere");
    cr_assert_eq(mkdir(in_scratch("closed"), 0500), 0);
    cli_result r = tiny_train("closed/run", "--quiet");
    expect_line(&r, 1, "closed|ermission");
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

/* Whatever the budget: the run works, in parts where it must, or is refused with sizes before anything is written. */
Test(faults, a_batch_that_does_not_fit_is_split) {
    static const char *const methods[] = {"simsiam", "byol"};
    int split = 0, refused = 0;
    for (int memory = 1; memory <= 6; memory++) {
        char more[200], run[32];
        const char *method = methods[memory % 2];
        (void)snprintf(run, sizeof run, "%s%d", method, memory);
        (void)snprintf(more, sizeof more, "--batch 128 --width 8 --steps 2 --method %s --memory %d", method, memory);
        cli_result r = tiny_train(run, more);
        if (r.code == 1) {
            cli_expect(&r, 1, "no memory for a buffer of|MiB|budget");
            expect_absent(run);
            refused++;
            continue;
        }
        cli_expect(&r, 0, "does not fit|parts of");
        json_t *config = read_json(in_scratch("%s/config.json", run));
        json_int_t micro = json_integer_value(json_object_get(json_object_get(config, "run"), "micro_batch"));
        cr_assert(micro >= 2 && micro < 128, "micro-batch %d", (int)micro);
        expect_finite(run);
        split++;
    }
    cr_assert_geq(split, 2);
    cr_assert_leq(refused, 4);
    cli_result r = tiny_train("none", "--batch 128 --width 64 --memory 1 --quiet");
    expect_line(&r, 1, "building cnn4 (width 64)|no memory|MiB|budget");
    expect_absent("none");
}

/* The split belongs to what is computed: more memory at the resumption does not change it. */
Test(faults, a_split_run_resumes_as_it_was) {
    const char options[] = "--batch 128 --width 8 --memory 5 --quiet --eval-every 0 --steps 30 --checkpoint-every 1";
    cli_result r = tiny_train("whole", options);
    cli_expect(&r, 0, "");
    cli_child child = tiny_start("parts", options);
    for (int i = 0; i < 20000 && metrics_count("parts", "step") < 4; i++)
        (void)usleep(2000);
    (void)kill(child.pid, SIGTERM);
    r = cli_wait(child);
    cli_expect(&r, 130, "");
    r = cli("train --resume --quiet --memory 0 --out %s", in_scratch("parts"));
    cli_expect(&r, 0, "");
    cr_assert_eq(differing_tensors(in_scratch("whole"), in_scratch("parts"), ""), 0);
}

/* ---- devices ---------------------------------------------------------------------------------------------------- */

Test(faults, without_a_platform_it_says_what_to_install) {
    cr_assert_eq(mkdir(in_scratch("no-vendors"), 0700), 0);
    (void)setenv("OCL_ICD_VENDORS", in_scratch("no-vendors"), 1);
    cli_result r = tiny_train("out", "--quiet");
    cli_expect(&r, 1, "no OpenCL|AMD|Intel|NVIDIA|pocl-opencl-icd");
    expect_absent("out");
}

Test(faults, the_flag_for_the_device_wins_over_the_variable) {
    cli_result r = tiny_train("out", "--quiet --device nosuch");
    cli_expect(&r, 1, "nosuch|0:0");
    (void)setenv("OFFDIAG_DEVICE", "nothere", 1);
    r = tiny_train("out", "--quiet");
    cli_expect(&r, 1, "OFFDIAG_DEVICE=nothere|0:0");
    expect_absent("out");
    r = tiny_train("out", "--quiet --device auto --steps 1");
    cli_expect(&r, 0, "");
    (void)setenv("OFFDIAG_DEVICE", "9:9", 1);
    r = cli("eval %s", in_scratch("out"));
    cli_expect(&r, 1, "9:9|0:0");
    (void)setenv("OFFDIAG_DEVICE", "auto", 1);
    r = cli("eval %s", in_scratch("out"));
    cli_expect(&r, 0, "");
}
