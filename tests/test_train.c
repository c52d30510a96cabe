/* Training end to end: determinism, resuming, what a run leaves behind, evaluation and export. */
#include <criterion/criterion.h>
#include <glob.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "harness.h"
#include "offdiag/train.h"
#include "run_cli.h"
#include "train/config.h"
#include "train/schedule.h"

TestSuite(train, .init = cli_setup, .fini = cli_teardown);

/* What of an epoch's line depends on nothing but the computation. */
static void expect_same_epochs(const char *a, const char *b) {
    static const char *const keys[] = {"epoch",        "step",  "loss",        "knn",         "effective_rank",
                                       "feature_rank", "z_std", "offdiag_max", "offdiag_norm"};
    int count = metrics_count(a, "epoch");
    cr_assert_eq(count, metrics_count(b, "epoch"));
    for (int i = 0; i < count; i++) {
        json_t *x = metrics_line(a, "epoch", i), *y = metrics_line(b, "epoch", i);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            cr_assert(json_equal(json_object_get(x, keys[k]), json_object_get(y, keys[k])), "epoch %d: %s differs",
                      i + 1, keys[k]);
        json_decref(x);
        json_decref(y);
    }
}

static void expect_same_run(const char *a, const char *b) {
    char *steps_a = metrics_text(a, "step"), *steps_b = metrics_text(b, "step");
    cr_assert_eq(differing_tensors(in_scratch("%s", a), in_scratch("%s", b), ""), 0, "%s and %s: tensors differ", a, b);
    cr_assert_gt(strlen(steps_a), 0);
    cr_assert_str_eq(steps_a, steps_b, "%s and %s: steps differ", a, b);
    expect_same_epochs(a, b);
    free(steps_a);
    free(steps_b);
}

/* ---- determinism ------------------------------------------------------------------------------------------------ */

Test(train, one_seed_gives_the_same_bits_and_another_one_does_not) {
    cli_result r[3] = {tiny_train("a", "--seed 7"), tiny_train("b", "--seed 7"), tiny_train("c", "--seed 8")};
    for (int i = 0; i < 3; i++)
        cli_expect(&r[i], 0, "");
    expect_same_run("a", "b");
    cr_assert_gt(differing_tensors(in_scratch("a"), in_scratch("c"), "backbone."), 10);
}

/* ---- resuming --------------------------------------------------------------------------------------------------- */

/* Interrupted somewhere in the middle and resumed: nothing tells that from a run in one go. */
static void interrupt_and_resume(const char *options, int signal) {
    char arguments[512];
    int at = 0, total = 0;
    (void)snprintf(arguments, sizeof arguments, "%s%s", tiny_long, options);
    cli_result whole = tiny_train("whole", arguments);
    cli_expect(&whole, 0, "");
    cli_result stopped = tiny_interrupt("parts", options, 8, signal);
    cli_expect(&stopped, 130, "interrupted at step|--resume --out");
    cr_assert_eq(sscanf(strstr(stopped.err, "interrupted at step"), "interrupted at step %d", &at), 1);
    cr_assert_eq(sscanf(strstr(tiny_long, "--steps"), "--steps %d", &total), 1);
    cr_assert(at >= 6 && at < total, "interrupted at step %d of %d", at, total);
    cr_assert_eq(metrics_count("parts", "step"), at);
    cli_result resumed = cli("train --resume --out %s", in_scratch("parts"));
    cli_expect(&resumed, 0, "");
    expect_same_run("whole", "parts");
}

Test(train, resumes_simsiam_offdiag_after_sigterm) {
    interrupt_and_resume("--method simsiam --head offdiag", SIGTERM);
}

Test(train, resumes_byol_mlp_after_sigint) {
    interrupt_and_resume("--method byol --head mlp --loss cosine --micro-batch 8", SIGINT);
}

/* Each optimiser's state, DirectPred's matrices and the online classifier are in the checkpoint. A run that ends early
 * differs from one in one go in its schedule, so the first one is stopped by a signal. */
Test(train, resumes_lars_with_an_online_classifier) {
    od_test_needs_whole();
    interrupt_and_resume("--method byol --head mlp --loss normalized --out-norm l2 --optimizer lars --online-linear",
                         SIGTERM);
    json_t *last = metrics_line("parts", "epoch", -1);
    double views = json_number_value(json_object_get(last, "online_linear_views"));
    double test = json_number_value(json_object_get(last, "online_linear"));
    cr_assert(views > 0.2 && views <= 1 && test > 0.2 && test <= 1, "%g on views, %g on test images", views, test);
    json_t *whole = metrics_line("whole", "epoch", -1);
    cr_assert_eq(views, json_number_value(json_object_get(whole, "online_linear_views")));
    cr_assert_eq(test, json_number_value(json_object_get(whole, "online_linear")));
    cr_assert_eq(tensors_with(in_scratch("parts"), "online_linear."), 4);
    json_decref(last);
    json_decref(whole);
}

Test(train, resumes_adamw_with_directpred_one_sided) {
    od_test_needs_whole();
    interrupt_and_resume("--head directpred --directpred-every 3 --optimizer adamw --lr 0.002 --symmetric=false "
                         "--micro-batch 8 --online-linear",
                         SIGINT);
    cr_assert_gt(tensors_with(in_scratch("parts"), "optimizer.second.backbone."), 10);
    cr_assert_eq(tensors_with(in_scratch("parts"), "predictor."), 2);
}

/* Every preset in data/presets is one of the names, and the other way round; each passes the checks. */
Test(train, presets_load) {
    const char *root = getenv("OFFDIAG_SOURCE_ROOT");
    char pattern[1024];
    int names = 0;
    glob_t files;
    (void)snprintf(pattern, sizeof pattern, "%s/data/presets/*.json", root ? root : ".");
    cr_assert_eq(glob(pattern, 0, NULL, &files), 0);
    for (; od_preset_names[names]; names++) {
        od_train_config c;
        od_train_config_default(&c);
        OD_MUST(od_train_config_preset(&c, od_preset_names[names]));
        (void)snprintf(c.out, sizeof c.out, "run");
        OD_MUST(od_train_config_check(&c));
    }
    cr_assert_eq((int)files.gl_pathc, names, "%zu presets, %d names", files.gl_pathc, names);
    globfree(&files);
}

/* Warm-up from a rate of its own, the cosine after it, rates by batch size, and the head's decay. */
Test(train, schedules_are_those_of_the_recipes) {
    od_train_config c;
    od_train_config_default(&c);
    OD_MUST(od_train_config_preset(&c, "byol-cifar10-solo-learn"));
    c.batch = 512; /* lr 1.0 for 256 images: 2.0 */
    const uint64_t per_epoch = 97, warmup = 970, total = 97000;
    od_optim_rates first = od_schedule_at(&c, 0, total, per_epoch), peak = od_schedule_at(&c, warmup, total, per_epoch);
    od_optim_rates half = od_schedule_at(&c, warmup + (total - warmup) / 2, total, per_epoch);
    cr_assert_float_eq(first.lr, 3e-5, 1e-9);
    cr_assert_float_eq(peak.lr, 2, 1e-6);
    cr_assert_float_eq(peak.head_lr, 2, 1e-6);
    cr_assert_float_eq(half.lr, 1, 1e-4);
    cr_assert_float_eq(half.head_lr, 1, 1e-4);
    cr_assert_float_eq(first.ema_tau, 0.99, 1e-7);
    cr_assert_float_eq(od_schedule_at(&c, total - 1, total, per_epoch).ema_tau, 1, 1e-6);
    c.head_decay = false;
    cr_assert_float_eq(od_schedule_at(&c, total - 1, total, per_epoch).head_lr, 2, 1e-6);
    od_train_config_default(&c); /* the cosine of the whole run, times a warm-up of 100 steps */
    cr_assert_float_eq(od_schedule_at(&c, 49, 1000, 10).lr, 0.05 * 0.5 * 0.5 * (1 + cos(M_PI * 0.049)), 1e-8);
}

/* When the run's checkpoint was written, in ns; 0: there is none. */
static int64_t checkpoint_time(const char *run) {
    struct stat info;
    if (stat(in_scratch("%s/checkpoint.safetensors", run), &info))
        return 0;
    return (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec;
}

static void pause_us(long us) {
    const struct timespec t = {.tv_nsec = us * 1000};
    (void)nanosleep(&t, NULL);
}

/* Kill a run of 3 epochs once it has written a checkpoint of its own (`before`: the last one's time), and either `us`
 * later or, with us < 0, as soon as another one is on its way. false: it ended by itself. */
static bool kill_in_training(cli_child child, int64_t before, long us) {
    for (int i = 0; i < 100000 && checkpoint_time("parts") == before && metrics_count("parts", "epoch") < 3; i++)
        pause_us(300);
    for (int i = 0; us < 0 && i < 3000 && files_with(in_scratch("parts"), ".tmp-") == 0; i++)
        pause_us(10);
    pause_us(us < 0 ? 0 : us);
    (void)kill(child.pid, SIGKILL);
    return cli_wait(child).signal == SIGKILL;
}

/* SIGKILL while checkpoints are written, one a step: whatever was on its way, the one that is there is whole, and what
 * was left half-written goes with the next run. */
Test(train, a_kill_at_any_moment_leaves_a_checkpoint_that_resumes) {
    const char options[] = "--steps 48 --checkpoint-every 1 --eval-every 0 --quiet --method byol --proj-hidden 512";
    uint32_t random = 12345;
    int kills = 0, in_writing = 0;
    cli_result whole = tiny_train("whole", options);
    cli_expect(&whole, 0, "");
    for (int i = 0; i < (od_test_is_whole() ? 14 : 7); i++) {
        int64_t before = checkpoint_time("parts");
        random = random * 1664525u + 1013904223u;
        cli_child child =
            before ? cli_start("train --resume --out %s --quiet", in_scratch("parts")) : tiny_start("parts", options);
        if (!kill_in_training(child, before, i % 2 ? -1 : (long)(random >> 16) % 5000))
            break; /* the run is complete */
        kills++;
        cr_assert_gt(tensors_with(in_scratch("parts"), ""), 20); /* opened, so checked against its size */
        int leftovers = files_with(in_scratch("parts"), ".tmp-");
        cr_assert_leq(leftovers, 1, "%d temporary files pile up", leftovers);
        in_writing += leftovers;
    }
    fprintf(stderr, "%d kills, %d of them while a checkpoint was being written\n", kills, in_writing);
    cr_assert_geq(kills, 5, "only %d kills in the middle of the run", kills);
    spew(in_scratch("parts/checkpoint.safetensors.tmp-1-0"), "half", 4);
    cli_result resumed = cli("train --resume --out %s", in_scratch("parts"));
    cli_expect(&resumed, 0, "");
    expect_same_run("whole", "parts");
    cr_assert_eq(files_with(in_scratch("parts"), ".tmp-"), 0);
}

/* ---- what a run leaves behind ----------------------------------------------------------------------------------- */

static void expect_keys(const json_t *object, const char *keys, const char *where) {
    char list[512], *rest = NULL;
    (void)snprintf(list, sizeof list, "%s", keys);
    for (char *key = strtok_r(list, " ", &rest); key; key = strtok_r(NULL, " ", &rest)) {
        const json_t *value = json_object_get(object, key);
        cr_assert(json_is_number(value) || json_is_string(value), "%s: no \"%s\"", where, key);
    }
}

Test(train, writes_the_keys_that_scripts_read) {
    cli_result r = tiny_train("run", "--steps 32 --head linear");
    cli_expect(&r, 0, "");
    cr_assert(strstr(r.out, "kNN accuracy") && strstr(r.out, in_scratch("run")), "%s", r.out);
    for (int i = 0; i < 2; i++)
        expect_keys(metrics_line("run", "epoch", i),
                    "event epoch loss knn effective_rank z_std offdiag_norm images_per_s", "epoch");
    for (int i = 0; i < 32; i++) {
        json_t *line = metrics_line("run", "step", i);
        expect_keys(line, "event step loss lr", "step");
        cr_assert_eq(json_integer_value(json_object_get(line, "step")), i + 1);
    }
    cr_assert_eq(metrics_count("run", "step"), 32);
    json_t *config = read_json(in_scratch("run/config.json"));
    const json_t *run = json_object_get(config, "run"), *options = json_object_get(config, "options");
    expect_keys(run, "version commit data_dir parameters steps micro_batch", "config.json: run");
    expect_keys(json_object_get(run, "device"), "id name platform driver opencl kernels", "config.json: device");
    expect_keys(options, "dataset encoder width method head loss lr momentum batch seed ema knn_k", "config.json");
    cr_assert_str_eq(json_string_value(json_object_get(options, "head")), "linear");
    cr_assert_eq(json_integer_value(json_object_get(options, "width")), 4);

    /* config.json is a --config: the same run again. */
    r = cli("train --config %s --out %s", in_scratch("run/config.json"), in_scratch("again"));
    cli_expect(&r, 0, "");
    expect_same_run("run", "again");
}

/* Largest |x| of a tensor's diagonal and of the rest, of (d, d). */
static void diagonal_and_rest(const char *name, double *diagonal, double *rest) {
    size_t count = 0;
    float *v = read_tensor(in_scratch("run"), name, &count);
    size_t d = (size_t)lround(sqrt((double)count));
    *diagonal = *rest = 0;
    for (size_t i = 0; i < count; i++) {
        double *at = i / d == i % d ? diagonal : rest;
        *at = fmax(*at, fabsf(v[i]));
        uint32_t bits;
        memcpy(&bits, &v[i], sizeof bits);
        cr_assert(i / d != i % d || bits == 0, "V[%zu, %zu] has bits %08x", i / d, i / d, bits);
    }
    free(v);
}

Test(train, trains_the_off_diagonal_entries_only) {
    double diagonal = NAN, rest = NAN;
    cli_result r = tiny_train("run", "--head offdiag --head-weight-decay 0.01");
    cli_expect(&r, 0, "");
    diagonal_and_rest("predictor.V", &diagonal, &rest);
    cr_assert_eq(diagonal, 0);
    cr_assert_gt(rest, 1e-4);
    r = tiny_train("none", "--head none");
    cli_expect(&r, 0, "");
    cr_assert_eq(tensors_with(in_scratch("none"), "predictor."), 0);
    cr_assert_eq(tensors_with(in_scratch("none"), "optimizer.momentum.predictor."), 0);
}

/* With a constant decay of 1/2: t_1 = (w_0 + w_1) / 2, t_2 = (t_1 + w_2) / 2. The first step's rate does not depend on
 * the length of the run, so a run of one step has the w_1 of a run of two; a rate of 0 keeps w_0. */
Test(train, the_byol_target_is_the_moving_average_of_the_weights) {
    static const char *const options[] = {"--steps 1 --lr 0 --weight-decay 0", "--steps 1", "--steps 2"};
    const char name[] = "backbone.layer1.conv.weight";
    size_t count = 0;
    double error = 0, moved = 0, apart = 0;
    float *w[3], *target[3];
    for (int k = 0; k < 3; k++) {
        char more[160];
        (void)snprintf(more, sizeof more, "--method byol --ema 0.5 --ema-constant --warmup 0 %s", options[k]);
        cli_result r = tiny_train((const char *const[]){"run0", "run1", "run2"}[k], more);
        cli_expect(&r, 0, "");
        w[k] = read_tensor(in_scratch("run%d", k), name, &count);
        target[k] = read_tensor(in_scratch("run%d", k), "momentum_backbone.layer1.conv.weight", &count);
    }
    cr_assert_arr_eq(w[0], target[0], count * sizeof *w[0]);
    for (size_t i = 0; i < count; i++) {
        error = fmax(error, fabs(0.5 * w[0][i] + 0.5 * w[1][i] - target[1][i]));
        error = fmax(error, fabs(0.25 * w[0][i] + 0.25 * w[1][i] + 0.5 * w[2][i] - target[2][i]));
        moved = fmax(moved, fabsf(w[2][i] - w[0][i]));
        apart = fmax(apart, fabsf(w[2][i] - target[2][i]));
    }
    cr_assert_lt(error, 1e-6);
    cr_assert_gt(moved, 1e-3);
    cr_assert_gt(apart, 1e-4);
}

/* ---- evaluation and export -------------------------------------------------------------------------------------- */

static json_t *evaluate(const char *arguments) {
    cli_result r = cli("eval %s --json %s", in_scratch("run"), arguments);
    cli_expect(&r, 0, "");
    json_error_t error;
    json_t *document = json_loads(r.out, JSON_REJECT_DUPLICATES, &error);
    cr_assert_not_null(document, "%s: %s", r.out, error.text);
    return document;
}

Test(train, eval_gives_the_accuracy_of_the_last_epoch) {
    cli_result r = tiny_train("run", "--epochs 3 --steps 0");
    cli_expect(&r, 0, "");
    json_t *knn = evaluate("--protocol knn"), *last = metrics_line("run", "epoch", -1);
    expect_keys(knn, "protocol accuracy k t", "eval --json");
    cr_assert_str_eq(json_string_value(json_object_get(knn, "protocol")), "knn");
    cr_assert_eq(json_integer_value(json_object_get(knn, "k")), 5);
    cr_assert_float_eq(json_number_value(json_object_get(knn, "t")), 0.1, 1e-12);
    double accuracy = json_real_value(json_object_get(knn, "accuracy"));
    cr_assert_float_eq(accuracy, json_real_value(json_object_get(last, "knn")), 1e-9);
    cr_assert(accuracy > 0.2, "accuracy %g of ten classes", accuracy);

    json_t *linear = evaluate("--protocol linear --epochs 3 --lr 0.1");
    expect_keys(linear, "protocol accuracy", "eval --json");
    cr_assert_str_eq(json_string_value(json_object_get(linear, "protocol")), "linear");
    accuracy = json_real_value(json_object_get(linear, "accuracy"));
    cr_assert(accuracy > 0.1 && accuracy <= 1, "linear accuracy %g", accuracy);

    r = cli("eval %s", in_scratch("run/checkpoint.safetensors"));
    cli_expect(&r, 0, "");
    cr_assert_not_null(strstr(r.out, "kNN accuracy"));
}

/* torchvision's state_dict of ResNet-18 without fc: 20 convolutions, 20 batch norms of 5 entries. */
static void expect_torchvision_keys(const char *file) {
    static const char *const bn[] = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"};
    char name[96];
    int found = 0;
    for (int layer = 0; layer <= 4; layer++)
        for (int block = 0; block < (layer ? 2 : 1); block++)
            for (int conv = 1; conv <= (layer ? 3 : 1); conv++) {
                char prefix[64] = "", conv_name[32], bn_name[32];
                if (conv == 3 && (layer == 1 || block == 1))
                    continue; /* no downsampling there */
                if (layer)
                    (void)snprintf(prefix, sizeof prefix, "layer%d.%d.", layer, block);
                (void)snprintf(conv_name, sizeof conv_name, conv == 3 ? "downsample.0" : "conv%d", conv);
                (void)snprintf(bn_name, sizeof bn_name, conv == 3 ? "downsample.1" : "bn%d", conv);
                (void)snprintf(name, sizeof name, "%s%s.weight", prefix, conv_name);
                cr_assert_eq(tensors_with(file, name), 1, "no %s", name);
                found++;
                for (int i = 0; i < 5; i++, found++) {
                    (void)snprintf(name, sizeof name, "%s%s.%s", prefix, bn_name, bn[i]);
                    cr_assert_eq(tensors_with(file, name), 1, "no %s", name);
                }
            }
    cr_assert_eq(found, 120);
    cr_assert_eq(tensors_with(file, ""), 120);
}

Test(train, exports_torchvisions_names) {
    size_t count = 0, exported_count = 0;
    cli_result r = tiny_train("run", "--encoder resnet18 --image-size 8 --steps 2");
    cli_expect(&r, 0, "");
    const char *out = in_scratch("encoder.safetensors");
    r = cli("export %s --out %s", in_scratch("run"), out);
    cli_expect(&r, 0, "");
    expect_torchvision_keys(out);
    float *ours = read_tensor(in_scratch("run"), "backbone.layer2.0.downsample.0.weight", &count);
    float *exported = read_tensor(out, "layer2.0.downsample.0.weight", &exported_count);
    cr_assert_eq(count, (size_t)8 * 4);
    cr_assert_eq(exported_count, count);
    cr_assert_arr_eq(ours, exported, count * sizeof *ours);
    r = cli("export %s", in_scratch("run"));
    cli_expect(&r, 2, "--out");
}

/* ---- embedding -------------------------------------------------------------------------------------------------- */

/* The data of a float .npy file whose header must hold `shape`; *count values follow. */
static float *read_npy(const char *path, const char *type, const char *shape, size_t *count) {
    size_t bytes = 0;
    char *file = slurp(path, &bytes);
    cr_assert(file && bytes > 10 && memcmp(file, "\x93NUMPY\x01\x00", 8) == 0, "%s: no .npy file", path);
    size_t header = 10 + (unsigned char)file[8] + 256u * (unsigned char)file[9];
    cr_assert(header < bytes && header % 64 == 0 && file[header - 1] == '\n');
    file[header - 1] = '\0';
    cr_assert(strstr(file + 10, shape) && strstr(file + 10, type) && strstr(file + 10, "'fortran_order': False"),
              "%s: %s", path, file + 10);
    *count = (bytes - header) / 4;
    return (float *)(file + header);
}

Test(train, embeds_features_labels_and_inputs_as_numpy_arrays) {
    cli_result r = tiny_train("run", "--steps 4");
    cli_expect(&r, 0, "");
    size_t n = 0, n_inputs = 0, n_labels = 0, n_again = 0;
    r = cli("embed %s --limit 5 --out %s --labels %s --images %s", in_scratch("run"), in_scratch("f.npy"),
            in_scratch("l.npy"), in_scratch("i.npy"));
    cli_expect(&r, 0, "");
    float *features = read_npy(in_scratch("f.npy"), "<f4", "(5, 16,)", &n);
    float *inputs = read_npy(in_scratch("i.npy"), "<f4", "(5, 14, 14, 4,)", &n_inputs);
    int32_t *labels = (int32_t *)read_npy(in_scratch("l.npy"), "<i4", "(5,)", &n_labels);
    cr_assert_eq(n, 5 * 16);
    cr_assert_eq(n_inputs, 5 * 14 * 14 * 4);
    cr_assert_eq(n_labels, 5);
    double spread = 0;
    for (size_t i = 0; i < 16; i++)
        spread += fabs(features[i] - features[16 + i]);
    cr_assert_gt(spread, 1e-6, "two images have the same features");
    for (size_t i = 3; i < n_inputs; i += 4)
        cr_assert_eq(inputs[i], 0);
    for (int i = 0; i < 5; i++)
        cr_assert(labels[i] >= 0 && labels[i] < 10);
    /* a feature does not depend on how many images are asked for */
    r = cli("embed %s --out %s", in_scratch("run"), in_scratch("all.npy"));
    cli_expect(&r, 0, "");
    float *again = read_npy(in_scratch("all.npy"), "<f4", "(64, 16,)", &n_again);
    for (size_t i = 0; i < n; i++)
        cr_assert_float_eq(again[i], features[i], 1e-6 + 1e-5 * fabs(features[i]));
    r = cli("embed %s", in_scratch("run"));
    cli_expect(&r, 2, "--out");
}
