/* What a run lets others watch: TensorBoard's events, read back by a reader of its own; reports of sound and of hostile
 * runs. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "od_config.h"
#include "run_cli.h"
#include "train/history.h"
#include "train/tensorboard.h"

TestSuite(watch, .init = cli_setup, .fini = cli_teardown);

#ifdef OD_HAVE_TENSORBOARD
#include <png.h>

/* ---- a reader of event files ------------------------------------------------------------------------------------ */

typedef struct bytes {
    const uint8_t *at, *end;
} bytes;

/* CRC-32C bit by bit, from its polynomial. */
static uint32_t crc32c(bytes b) {
    uint32_t crc = ~0u;
    for (const uint8_t *c = b.at; c < b.end; c++) {
        crc ^= *c;
        for (int i = 0; i < 8; i++)
            crc = crc & 1 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
    }
    return ~crc;
}

static uint64_t little(const uint8_t *at, int size) {
    uint64_t x = 0;
    for (int i = size - 1; i >= 0; i--)
        x = x << 8 | at[i];
    return x;
}

static void expect_crc(bytes b, const uint8_t *stored) {
    uint32_t crc = crc32c(b), masked = ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
    cr_assert_eq((uint32_t)little(stored, 4), masked, "a CRC is %08x, expected %08x", (uint32_t)little(stored, 4),
                 masked);
}

static uint64_t varint(bytes *b) {
    uint64_t x = 0;
    for (int shift = 0;; shift += 7) {
        cr_assert(b->at < b->end && shift < 64);
        x |= (uint64_t)(*b->at & 127) << shift;
        if (!(*b->at++ & 128))
            return x;
    }
}

/* The next field of a message; its value as a number (varint, or the bits of fixed ones) or as bytes. */
typedef struct field {
    int number;
    uint64_t value;
    bytes data;
} field;

static bool next_field(bytes *b, field *f) {
    if (b->at == b->end)
        return false;
    uint64_t key = varint(b);
    int type = key & 7, size = type == 1 ? 8 : type == 5 ? 4 : 0;
    *f = (field){.number = (int)(key >> 3)};
    if (type == 0) {
        f->value = varint(b);
    } else if (type == 2) {
        uint64_t length = varint(b);
        cr_assert_leq(length, (uint64_t)(b->end - b->at));
        f->data = (bytes){b->at, b->at + length};
        b->at += length;
    } else {
        cr_assert(size > 0 && b->end - b->at >= size, "wire type %d", type);
        f->value = little(b->at, size);
        b->at += size;
    }
    return true;
}

static double as_double(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

typedef struct seen { /* one value of a summary */
    int64_t step;
    char tag[64];
    float scalar;
    bytes image, histogram; /* of the PNG; of the message */
} seen;

typedef struct events {
    seen values[8192];
    int count, versions, starts;
    int64_t last;
} events;

static void read_value(events *l, bytes message, int64_t step) {
    cr_assert_lt(l->count, 8192);
    seen *v = &l->values[l->count++];
    field f, g;
    *v = (seen){.step = step};
    while (next_field(&message, &f)) {
        uint32_t bits = (uint32_t)f.value;
        if (f.number == 1)
            (void)snprintf(v->tag, sizeof v->tag, "%.*s", (int)(f.data.end - f.data.at), (const char *)f.data.at);
        else if (f.number == 2)
            memcpy(&v->scalar, &bits, sizeof bits);
        else if (f.number == 5)
            v->histogram = f.data;
        else if (f.number == 4)
            while (next_field(&f.data, &g))
                if (g.number == 4)
                    v->image = g.data;
    }
}

static void read_event(events *l, bytes event) {
    field f, values[1];
    bytes summary = {0};
    int64_t step = 0;
    while (next_field(&event, &f)) {
        if (f.number == 1)
            cr_assert_gt(as_double(f.value), 1.6e9);
        else if (f.number == 2)
            step = (int64_t)f.value;
        else if (f.number == 3)
            l->versions += f.data.at && memcmp(f.data.at, "brain.Event:2", 13) == 0;
        else if (f.number == 5)
            summary = f.data;
        else if (f.number == 7)
            l->starts++;
    }
    cr_assert_geq(step, l->last, "step %lld after %lld", (long long)step, (long long)l->last);
    l->last = step;
    while (next_field(&summary, values))
        read_value(l, values->data, step);
}

static void read_file(events *l, const char *path) {
    size_t size = 0;
    const uint8_t *data = (const uint8_t *)slurp(path, &size);
    cr_assert_not_null(data);
    l->last = 0;
    for (size_t at = 0; data && at < size;) {
        cr_assert_leq(at + 12, size, "%s: cut off", path);
        uint64_t length = little(data + at, 8);
        expect_crc((bytes){data + at, data + at + 8}, data + at + 8);
        cr_assert_leq(at + 16 + length, size, "%s: cut off", path);
        bytes event = {data + at + 12, data + at + 12 + length};
        expect_crc(event, event.end);
        read_event(l, event);
        at += 16 + length;
    }
}

static int is_event_file(const struct dirent *e) {
    return strncmp(e->d_name, "events.out.tfevents.", 20) == 0;
}

/* All of a run's event files, in the order of their names. */
static events *read_log(const char *run) {
    struct dirent **names = NULL;
    events *l = calloc(1, sizeof *l);
    int n = scandir(in_scratch("%s", run), &names, is_event_file, alphasort);
    cr_assert_gt(n, 0, "%s: no event file", run);
    for (int i = 0; i < n; i++)
        read_file(l, in_scratch("%s/%s", run, names[i]->d_name));
    return l;
}

/* The number `index` of a tag's values. */
static const seen *find(const events *l, const char *tag, int index) {
    for (int i = 0; i < l->count; i++)
        if (strcmp(l->values[i].tag, tag) == 0 && index-- == 0)
            return &l->values[i];
    return NULL;
}

/* A tag's scalars are those of metrics.jsonl, once each, with `before` others at the start. */
static void expect_series(const events *l, const char *run, const char *tag, const char *event, const char *key,
                          int before) {
    int count = metrics_count(run, event), at = before;
    for (int i = 0; i < count; i++) {
        json_t *line = metrics_line(run, event, i), *value = json_object_get(line, key);
        if (json_is_number(value)) {
            const seen *v = find(l, tag, at++);
            cr_assert(v && v->step == json_integer_value(json_object_get(line, "step")), "%s: %s of step %lld", run,
                      tag, (long long)json_integer_value(json_object_get(line, "step")));
            cr_assert_float_eq(v->scalar, json_number_value(value), 1e-6 * fabs(json_number_value(value)));
        }
        json_decref(line);
    }
    cr_assert(at > before && !find(l, tag, at), "%s: %s: %d values expected", run, tag, at);
}

static void expect_log(const events *l, const char *run) {
    static const char *const epoch[][2] = {{"epoch/loss", "loss"},
                                           {"collapse/effective_rank", "effective_rank"},
                                           {"collapse/z_std", "z_std"},
                                           {"head/offdiag_norm", "offdiag_norm"},
                                           {"speed/images_per_s", "images_per_s"}};
    expect_series(l, run, "train/loss", "step", "loss", 0);
    expect_series(l, run, "train/lr", "step", "lr", 0);
    expect_series(l, run, "eval/knn", "epoch", "knn", 1);
    for (size_t i = 0; i < sizeof epoch / sizeof *epoch; i++)
        expect_series(l, run, epoch[i][0], "epoch", epoch[i][1], 0);
}

/* Decoded pixels (height, width, 3). */
static uint8_t *decode(bytes png, int *width, int *height) {
    png_image image = {.version = PNG_IMAGE_VERSION};
    cr_assert(png_image_begin_read_from_memory(&image, png.at, (size_t)(png.end - png.at)), "%s", image.message);
    image.format = PNG_FORMAT_RGB;
    uint8_t *pixels = malloc(PNG_IMAGE_SIZE(image));
    cr_assert(png_image_finish_read(&image, NULL, pixels, 0, NULL), "%s", image.message);
    *width = (int)image.width;
    *height = (int)image.height;
    return pixels;
}

/* ---- events ----------------------------------------------------------------------------------------------------- */

/* E's picture against the checkpoint's V: cell by cell white at 0, red above, blue below, grey on the diagonal. */
static void expect_head_picture(const seen *v, const char *run) {
    int width = 0, height = 0;
    size_t count = 0;
    uint8_t *pixels = decode(v->image, &width, &height);
    float *stored = read_tensor(in_scratch("%s", run), "predictor.V", &count); /* (outputs, inputs) */
    cr_assert(count == 64 && width == height && width % 8 == 0 && width >= 256, "%dx%d", width, height);
    for (int i = 0; i < 64; i++) {
        int row = i / 8, column = i % 8, cell = width / 8;
        const uint8_t *p = pixels + ((size_t)(row * cell + cell / 2) * width + column * cell + cell / 2) * 3;
        float e = stored[column * 8 + row];
        if (row == column)
            cr_assert(p[0] == p[1] && p[1] == p[2] && p[0] < 255);
        else
            cr_assert(e > 0 ? p[0] >= p[2] : p[2] >= p[0], "E[%d, %d] = %g is %d %d %d", row, column, e, p[0], p[1],
                      p[2]);
    }
}

static void expect_histogram(const seen *v, int entries, double largest) {
    field f;
    bytes message = v->histogram;
    double sum = 0, low = NAN, high = NAN, num = NAN;
    while (next_field(&message, &f)) {
        if (f.number == 1)
            low = as_double(f.value);
        else if (f.number == 2)
            high = as_double(f.value);
        else if (f.number == 3)
            num = as_double(f.value);
        else if (f.number == 7)
            for (const uint8_t *at = f.data.at; at < f.data.end; at += 8)
                sum += as_double(little(at, 8));
    }
    cr_assert_eq(num, entries);
    cr_assert_eq(sum, entries);
    cr_assert_float_eq(fmax(fabs(low), fabs(high)), largest, 1e-6 * largest);
}

Test(watch, events_hold_what_metrics_hold_and_pictures) {
    cli_result r = tiny_train("run", "--steps 40 --quiet");
    cli_expect(&r, 0, "");
    events *l = read_log("run");
    int width = 0, height = 0, epochs = metrics_count("run", "epoch");
    cr_assert(l->versions == 1 && l->starts == 0 && epochs == 3);
    expect_log(l, "run");
    for (int i = 0; i < epochs; i++) {
        json_t *line = metrics_line("run", "epoch", i);
        const seen *picture = find(l, "views/batch", i), *head = find(l, "head/E", i), *h = find(l, "head/offdiag", i);
        cr_assert(picture && head && h && head->step == json_integer_value(json_object_get(line, "step")));
        uint8_t *pixels = decode(picture->image, &width, &height), low = 255, high = 0;
        for (int p = 0; p < width * height * 3; p++) {
            low = pixels[p] < low ? pixels[p] : low;
            high = pixels[p] > high ? pixels[p] : high;
        }
        cr_assert(width >= 8 * 14 && height >= 4 * 14 && high > low + 100, "views of %dx%d, %d to %d", width, height,
                  low, high);
        expect_histogram(h, 8 * 7, json_number_value(json_object_get(line, "offdiag_max")));
    }
    expect_head_picture(find(l, "head/E", epochs - 1), "run");
    cr_assert(!find(l, "head/E", epochs) && !find(l, "views/batch", epochs));
}

Test(watch, a_killed_and_resumed_run_has_each_step_once) {
    cli_result r = tiny_interrupt("run", "--steps 120 --checkpoint-every 30 --eval-every 0", 50, SIGKILL);
    cr_assert_eq(r.signal, SIGKILL);
    cr_assert_eq(files_with(in_scratch("run"), "tfevents"), 1);
    struct dirent **names = NULL; /* and what a crash of the machine may leave */
    cr_assert_eq(scandir(in_scratch("run"), &names, is_event_file, alphasort), 1);
    FILE *file = fopen(in_scratch("run/%s", names[0]->d_name), "ab");
    cr_assert_eq(fwrite("\x05\0\0\0half a record", 1, 17, file), 17);
    cr_assert_eq(fclose(file), 0);
    r = cli("train --resume --out %s", in_scratch("run"));
    cli_expect(&r, 0, "");
    events *l = read_log("run");
    cr_assert(l->versions == 2 && l->starts == 1, "%d files, %d starts", l->versions, l->starts);
    expect_log(l, "run");
}

Test(watch, no_events_when_not_asked_for) {
    cli_result r = tiny_train("run", "--steps 2 --tensorboard=false");
    cli_expect(&r, 0, "");
    cr_assert_eq(files_with(in_scratch("run"), "tfevents"), 0);
}

/* The events outgrow the limit first: they hold a picture an epoch. */
Test(watch, a_file_that_cannot_grow_ends_the_events_and_not_the_run) {
    const struct rlimit limit = {100000, 100000};
    const cli_child child = tiny_start("run", "--steps 400 --eval-every 0");
    for (int i = 0; i < 40000 && metrics_count("run", "epoch") < 1; i++) /* until all programs are built */
        (void)usleep(3000);
    cr_assert_eq(prlimit(child.pid, RLIMIT_FSIZE, &limit, NULL), 0);
    cli_result r = cli_wait(child);
    cli_expect(&r, 0, "TensorBoard events end here: |tfevents");
    cr_assert_eq(metrics_count("run", "step"), 400);
}

Test(watch, a_folder_that_cannot_be_written_is_an_error_at_the_start) {
    od_tensorboard *tb = NULL;
    cr_assert_eq(od_tensorboard_open(&tb, in_scratch("absent"), 0), OD_ERR_IO);
    cr_assert(!tb && strstr(od_error_message(), "absent"));
}

/* TensorBoard itself, where there is one ($OFFDIAG_TENSORBOARD_PYTHON, or python3, with the package). */
Test(watch, tensorboard_reads_it_without_a_warning) {
    const char *python = getenv("OFFDIAG_TENSORBOARD_PYTHON"), *root = getenv("OFFDIAG_SOURCE_ROOT");
    char command[2048];
    cli_result r = tiny_train("run", "--steps 40 --quiet");
    cli_expect(&r, 0, "");
    (void)snprintf(command, sizeof command, "'%s' '%s/tools/check_tensorboard.py' '%s'", python ? python : "python3",
                   root ? root : ".", in_scratch("run"));
    int state = system(command);
    cr_assert(WIFEXITED(state));
    if (WEXITSTATUS(state) == 77)
        cr_skip_test("tensorboard is not installed");
    cr_assert_eq(WEXITSTATUS(state), 0);
}
#endif

/* ---- histories -------------------------------------------------------------------------------------------------- */

static void make_run(const char *name, const char *metrics, size_t size) {
    cr_assert_eq(mkdir(in_scratch("%s", name), 0700), 0);
    spew(in_scratch("%s/metrics.jsonl", name), metrics, size);
}

Test(watch, very_long_histories_are_thinned_and_keep_their_means_and_ends) {
    enum { STEPS = 100000, EPOCHS = 3001 };
    char *text = malloc((STEPS + EPOCHS) * 96), *at = text;
    od_history h;
    double sum = 0;
    for (int i = 1; i <= STEPS; i++)
        at += sprintf(at, "{\"event\":\"step\",\"step\":%d,\"loss\":%d}\n", i, i);
    for (int i = 1; i <= EPOCHS; i++)
        at += sprintf(at, "{\"event\":\"epoch\",\"epoch\":%d,\"step\":%d,\"offdiag_norm\":%d}\n", i, i * 10,
                      i == 1234 ? 99999 : i);
    make_run("run", text, (size_t)(at - text));
    OD_MUST(od_history_read(&h, in_scratch("run")));
    cr_assert(h.loss_count > 300 && h.loss_count <= OD_HISTORY_POINTS, "%zu points", h.loss_count);
    for (size_t i = 0; i < h.loss_count; i++) { /* a point is the mean of the steps since the one before */
        double before = i ? h.losses[i - 1][0] : 0;
        cr_assert_float_eq(h.losses[i][1], (before + 1 + h.losses[i][0]) / 2, 1e-6 * h.losses[i][1]);
        sum += h.losses[i][0] - before;
    }
    cr_assert_eq(sum, STEPS);
    cr_assert(h.epoch_count > 300 && h.epoch_count <= OD_HISTORY_POINTS, "%zu epochs", h.epoch_count);
    cr_assert_eq(h.epochs[h.epoch_count - 1][OD_HISTORY_EPOCH], EPOCHS);
    cr_assert_eq(h.last[OD_HISTORY_OFFDIAG], EPOCHS);
    cr_assert_eq(h.offdiag_peak, 99999);
    cr_assert(isnan(h.last[OD_HISTORY_KNN]) && h.skipped == 0);
    od_history_free(&h);
}

/* ---- reports ---------------------------------------------------------------------------------------------------- */

/* The data that a page holds, which must not be able to end its element. */
static json_t *page_data(const char *path) {
    static const char start[] = "<script type=\"application/json\" id=\"data\">";
    char *text = slurp(path, NULL), *data = text ? strstr(text, start) : NULL;
    json_error_t error;
    cr_assert(data, "%s: no data", path);
    data += sizeof start - 1;
    size_t length = strcspn(data, "<");
    cr_assert_eq(strncmp(data + length, "</script>", 9), 0, "'<' in the data: %.60s", data + length);
    json_t *json = json_loadb(data, length, 0, &error);
    cr_assert_not_null(json, "%s: %s", path, error.text);
    cr_assert(!strstr(text, "src=\"") && !strstr(text, "href=\""), "%s names something outside", path);
    return json;
}

static const json_t *part(const json_t *json, const char *a, const char *b) {
    const json_t *value = json_object_get(json_object_get(json, a), b);
    cr_assert_not_null(value, "no %s.%s", a, b);
    return value;
}

Test(watch, a_report_shows_a_run) {
    cli_result r = tiny_train("run", "--steps 40 --quiet");
    cli_expect(&r, 0, "");
    r = cli("report %s", in_scratch("run"));
    cli_expect(&r, 0, "");
    const json_t *run = json_array_get(json_object_get(page_data(in_scratch("run/report.html")), "runs"), 0);
    json_t *last = metrics_line("run", "epoch", -1);
    size_t count = 0;
    float *v = read_tensor(in_scratch("run"), "predictor.V", &count), largest = 0;
    cr_assert_eq(json_array_size(part(run, "losses", "loss")), 40);
    cr_assert_eq(json_array_size(part(run, "epochs", "knn")), 3);
    cr_assert_eq(json_array_size(json_object_get(run, "spectra")), 3);
    cr_assert_float_eq(json_number_value(part(run, "figures", "knn")), json_number_value(json_object_get(last, "knn")),
                       1e-4);
    cr_assert_str_eq(json_string_value(part(run, "options", "head")), "offdiag");
    for (size_t i = 0; i < count; i++)
        largest = fmaxf(largest, fabsf(v[i]));
    cr_assert_float_eq(json_number_value(part(run, "head", "scale")), largest, 1e-4 * largest);
    for (size_t i = 0; i < 64; i++) /* rows are inputs; the file has outputs first */
        cr_assert_float_eq(json_number_value(json_array_get(part(run, "head", "values"), i)),
                           127 * v[i % 8 * 8 + i / 8] / largest, 0.51);
}

static const char hostile[] =
    "{\"event\":\"start\",\"step\":0,\"knn\":0.1}\n"
    "{\"event\":\"step\",\"step\":1,\"loss\":1.5,\"lr\":0.1}\n"
    "{\"event\":\"step\",\"step\":2,\"loss\":1e400,\"lr\":0.1}\n"            /* 1: no double */
    "{\"event\":\"step\",\"step\":3,\"loss\":NaN,\"lr\":0.1}\n"              /* 2: no JSON */
    "{\"event\":\"step\",\"step\":4,\"loss\":1e300,\"lr\":0.1}\n"            /* used, its loss is not */
    "{\"event\":\"step\",\"step\":3,\"loss\":2,\"lr\":0.1}\n"                /* 3: back in time */
    "{\"event\":\"step\",\"step\":99999999999999999999999,\"loss\":2}\n"     /* 4 */
    "{\"event\":\"step\",\"step\":-5,\"loss\":2}\n[1,2]\nnull\n\n\xff\xfe\n" /* 5 to 9 */
    "{\"event\":[],\"step\":{}}\n"                                           /* 10 */
    "{\"event\":\"step\",\"step\":5,\"loss\":2.5,\"lr\":0.1}\n"
    "{\"event\":\"epoch\",\"step\":5,\"epoch\":1,\"loss\":\"</script><script>alert(1)</script>\",\"knn\":0.5,"
    "\"offdiag_norm\":1e39}\n"
    "{\"event\":\"spectrum\",\"step\":5,\"count\":2000000000,\"log_singular\":[1,2]}\n" /* 11 */
    "{\"event\":\"spectrum\",\"step\":5,\"count\":2,\"log_singular\":[1,\"x\"]}\n"      /* 12 */
    "{\"event\":\"later\",\"step\":5}\n"
    "{\"event\":\"epoch\",\"step\":10,\"epoch\":2,\"lo"; /* 13: cut off */
enum { HOSTILE_SKIPPED = 13 };

Test(watch, a_report_of_a_hostile_run_is_harmless) {
    static const char name[] = "<!--<script>&amp;\"'\xff";
    static const char config[] = "{\"options\":{\"head\":\"</script><img src=x onerror=alert(1)>\",\"__proto__\":1,"
                                 "\"deep\":[[[1]]],\"lr\":1e308},\"run\":{\"device\":7}}";
    make_run(name, hostile, sizeof hostile - 1);
    spew(in_scratch("%s/config.json", name), config, sizeof config - 1);
    spew(in_scratch("%s/checkpoint.safetensors", name), "\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10);
    cli_result r = cli("report %s --out %s", in_scratch("%s", name), in_scratch("out.html"));
    cli_expect(&r, 0, "13 lines of metrics.jsonl|its head is not shown: ");
    const json_t *run = json_array_get(json_object_get(page_data(in_scratch("out.html")), "runs"), 0);
    cr_assert_str_eq(json_string_value(json_object_get(run, "name")), "<!--<script>&amp;\"'?");
    cr_assert_eq(json_array_size(json_object_get(run, "notes")), 2);
    cr_assert_eq(json_array_size(part(run, "losses", "loss")), 2);
    cr_assert(json_is_null(json_array_get(part(run, "epochs", "loss"), 0)));
    cr_assert(json_is_null(json_array_get(part(run, "epochs", "offdiag_norm"), 0)));
    cr_assert_eq(json_number_value(part(run, "figures", "knn")), 0.5);
    cr_assert_eq(json_integer_value(part(run, "figures", "step")), 5);
    cr_assert_eq(json_array_size(json_object_get(run, "spectra")), 0);
    cr_assert_str_eq(json_string_value(part(run, "options", "head")), "</script><img src=x onerror=alert(1)>");
    cr_assert_null(json_object_get(json_object_get(run, "options"), "deep"));
}

/* A line of a megabyte, bytes of zero, a file without an end of line: what follows them is still read. */
Test(watch, lines_that_are_no_lines_cost_only_themselves) {
    static const char good[] =
        "\n{\"event\":\"step\",\"step\":7,\"loss\":1}\na\0b\n{\"event\":\"step\",\"step\":8,\"loss\":3}";
    size_t size = (1 << 20) + sizeof good - 1;
    char *text = malloc(size);
    od_history h;
    memset(text, '{', size);
    memcpy(text + (1 << 20), good, sizeof good - 1);
    make_run("run", text, size);
    free(text);
    OD_MUST(od_history_read(&h, in_scratch("run")));
    cr_assert_eq(h.loss_count, 2, "%zu", h.loss_count);
    cr_assert_eq(h.losses[1][1], 3);
    cr_assert_eq(h.skipped, 2, "%zu", h.skipped);
    od_history_free(&h);
}

Test(watch, reports_that_cannot_be_made) {
    make_run("a", hostile, sizeof hostile - 1);
    make_run("b", "", 0);
    cli_result r = cli("report %s", in_scratch("absent"));
    cli_expect(&r, 1, "absent/metrics.jsonl|cannot open");
    r = cli("report %s %s", in_scratch("a"), in_scratch("b"));
    cli_expect(&r, 2, "--out");
    r = cli("report");
    cli_expect(&r, 2, "RUN...");
    cr_assert_eq(mkfifo(in_scratch("absent.fifo"), 0600), 0);
    cr_assert_eq(mkdir(in_scratch("fifo"), 0700), 0);
    cr_assert_eq(rename(in_scratch("absent.fifo"), in_scratch("fifo/metrics.jsonl")), 0);
    r = cli("report %s --out %s", in_scratch("fifo"), in_scratch("x.html"));
    cli_expect(&r, 1, "expected a regular file");
    r = cli("report %s %s --out %s", in_scratch("a"), in_scratch("b"), in_scratch("both.html"));
    cli_expect(&r, 0, "no usable config.json"); /* an empty run is shown as one */
    cr_assert_eq(json_array_size(json_object_get(page_data(in_scratch("both.html")), "runs")), 2);
}
