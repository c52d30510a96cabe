/* The safetensors reader and writer: round trip, the format's rules one by one, and thousands of corrupted files. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/safetensors.h"

/* ---- files in a directory of this process ----------------------------------------------------------------------- */

static char directory[] = "/tmp/offdiag-safetensors-XXXXXX";
static char path[128];

static void setup(void) {
    cr_assert_not_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/file.safetensors", directory);
}

static void teardown(void) {
    unlink(path);
    rmdir(directory);
}

static void put(const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    cr_assert_not_null(f);
    cr_assert_eq(fwrite(data, 1, bytes, f), bytes);
    fclose(f);
}

static unsigned char *get(size_t *bytes) {
    static unsigned char data[8192];
    FILE *f = fopen(path, "rb");
    cr_assert_not_null(f);
    *bytes = fread(data, 1, sizeof data, f);
    fclose(f);
    return data;
}

/* A file with this header and `data_bytes` of data. */
static void put_header(const char *header, size_t data_bytes) {
    unsigned char data[4096] = {0};
    uint64_t length = strlen(header);
    cr_assert(8 + length + data_bytes <= sizeof data);
    memcpy(data, &length, 8);
    (void)snprintf((char *)data + 8, sizeof data - 8, "%s", header);
    put(data, 8 + length + data_bytes);
}

static void rejected(const char *why, const char *words) {
    od_safetensors *f = NULL;
    od_status status = od_safetensors_open(path, &f);
    cr_assert_eq(status, OD_ERR_FORMAT, "%s: status %d, %s", why, status, status ? od_error_message() : "accepted");
    cr_assert_null(f);
    cr_assert(strstr(od_error_message(), path), "%s: no file name in: %s", why, od_error_message());
    cr_assert(strstr(od_error_message(), words), "%s: no '%s' in: %s", why, words, od_error_message());
    cr_assert_null(strchr(od_error_message(), '\n'), "%s: more than one line: %s", why, od_error_message());
}

static void write_sample(void) {
    static const float weights[2][3] = {{1, 2, 3}, {4, 5, -6}};
    static const int64_t step = 1234567890123;
    static const double norms[2] = {0.5, -1e300};
    static const uint8_t bytes[5] = {0, 1, 2, 254, 255};
    od_safetensors_writer *w = NULL;
    cr_assert_eq(od_safetensors_writer_create(&w), OD_OK);
    cr_assert_eq(od_safetensors_add(w, "weights", OD_F32, 2, (size_t[]){2, 3}, weights), OD_OK);
    cr_assert_eq(od_safetensors_add(w, "step", OD_I64, 0, NULL, &step), OD_OK);
    cr_assert_eq(od_safetensors_add(w, "bytes", OD_U8, 1, (size_t[]){5}, bytes), OD_OK);
    cr_assert_eq(od_safetensors_add(w, "norms", OD_F64, 1, (size_t[]){2}, norms), OD_OK);
    cr_assert_eq(od_safetensors_add(w, "nothing", OD_F32, 2, (size_t[]){0, 7}, NULL), OD_OK);
    cr_assert_eq(od_safetensors_add_metadata(w, "config", "{\"lr\": 0.1}"), OD_OK);
    cr_assert_eq(od_safetensors_write(w, path), OD_OK, "%s", od_error_message());
    od_safetensors_writer_destroy(w);
}

/* ---- round trip ------------------------------------------------------------------------------------------------- */

Test(safetensors, round_trip, .init = setup, .fini = teardown) {
    od_safetensors *f = NULL;
    float weights[6];
    int64_t step;
    double norms[2];
    uint8_t bytes[5];
    write_sample();
    cr_assert_eq(od_safetensors_open(path, &f), OD_OK, "%s", od_error_message());
    cr_assert_eq(od_safetensors_count(f), 5);
    const od_tensor *t = od_safetensors_find(f, "weights");
    cr_assert_not_null(t);
    cr_assert(t->dtype == OD_F32 && t->rank == 2 && t->shape[0] == 2 && t->shape[1] == 3 && t->bytes == 24);
    cr_assert_eq(od_safetensors_read(f, t, weights), OD_OK);
    for (int i = 0; i < 6; i++)
        cr_assert_eq(weights[i], i == 5 ? -6 : i + 1);
    cr_assert_eq(od_safetensors_read_as(f, "step", OD_I64, 1, &step), OD_OK);
    cr_assert_eq(step, 1234567890123);
    cr_assert_eq(od_safetensors_read_as(f, "norms", OD_F64, 2, norms), OD_OK);
    cr_assert(norms[0] == 0.5 && norms[1] == -1e300);
    cr_assert_eq(od_safetensors_read_as(f, "bytes", OD_U8, 5, bytes), OD_OK);
    cr_assert(bytes[3] == 254 && bytes[4] == 255);
    cr_assert_eq(od_safetensors_find(f, "nothing")->count, 0);
    cr_assert_str_eq(od_safetensors_at(f, 0)->name, "bytes");
    cr_assert_null(od_safetensors_at(f, 5));
    cr_assert_null(od_safetensors_find(f, "weight"));
    cr_assert_str_eq(od_safetensors_metadata(f, "config"), "{\"lr\": 0.1}");
    cr_assert_null(od_safetensors_metadata(f, "other"));
    cr_assert_eq(od_safetensors_read_as(f, "step", OD_F32, 1, weights), OD_ERR_FORMAT);
    cr_assert_eq(od_safetensors_read_as(f, "weights", OD_F32, 5, weights), OD_ERR_FORMAT);
    cr_assert_eq(od_safetensors_read_as(f, "absent", OD_F32, 5, weights), OD_ERR_FORMAT);
    od_safetensors_close(f);
}

/* The bytes are those of the reference writer (checked against safetensors 0.4.3 of PyPI). */
Test(safetensors, bytes_of_the_reference_writer, .init = setup, .fini = teardown) {
    static const char header[] = "{\"__metadata__\":{\"config\":\"{\\\"lr\\\": 0.1}\"},"
                                 "\"step\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
                                 "\"norms\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[8,24]},"
                                 "\"nothing\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[24,24]},"
                                 "\"weights\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[24,48]},"
                                 "\"bytes\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[48,53]}}";
    size_t size, length = sizeof header - 1, padded = (length + 7) / 8 * 8;
    uint64_t stored;
    write_sample();
    const unsigned char *data = get(&size);
    memcpy(&stored, data, 8);
    cr_assert_eq(stored, padded);
    cr_assert_eq(memcmp(data + 8, header, length), 0, "%.*s", (int)padded, data + 8);
    for (size_t i = length; i < padded; i++)
        cr_assert_eq(data[8 + i], ' ');
    cr_assert_eq(size, 8 + padded + 53);
}

Test(safetensors, the_empty_file, .init = setup, .fini = teardown) {
    static const unsigned char empty[16] = {8, 0, 0, 0, 0, 0, 0, 0, '{', '}', ' ', ' ', ' ', ' ', ' ', ' '};
    od_safetensors_writer *w = NULL;
    od_safetensors *f = NULL;
    size_t size;
    cr_assert_eq(od_safetensors_writer_create(&w), OD_OK);
    cr_assert_eq(od_safetensors_write(w, path), OD_OK);
    od_safetensors_writer_destroy(w);
    const unsigned char *data = get(&size);
    cr_assert(size == 16 && memcmp(data, empty, 16) == 0);
    cr_assert_eq(od_safetensors_open(path, &f), OD_OK, "%s", od_error_message());
    cr_assert_eq(od_safetensors_count(f), 0);
    cr_assert_null(od_safetensors_find(f, "x"));
    od_safetensors_close(f);
}

Test(safetensors, the_writer_refuses, .init = setup, .fini = teardown) {
    od_safetensors_writer *w = NULL;
    float x[2] = {0};
    cr_assert_eq(od_safetensors_writer_create(&w), OD_OK);
    cr_assert_eq(od_safetensors_add(w, "x", OD_F32, 1, (size_t[]){2}, x), OD_OK);
    cr_assert_eq(od_safetensors_add(w, "x", OD_U8, 1, (size_t[]){2}, x), OD_ERR_ARGUMENT);
    cr_assert_eq(od_safetensors_add(w, "__metadata__", OD_F32, 1, (size_t[]){2}, x), OD_ERR_ARGUMENT);
    cr_assert_eq(od_safetensors_add(w, "y", OD_F32, 2, (size_t[]){SIZE_MAX, 2}, x), OD_ERR_ARGUMENT);
    cr_assert_eq(od_safetensors_add(w, "y", OD_F32, 9, (size_t[9]){1}, x), OD_ERR_ARGUMENT);
    cr_assert_eq(od_safetensors_add_metadata(w, "k", "\xff\xfe"), OD_ERR_ARGUMENT);
    cr_assert_neq(od_safetensors_write(w, "/nonexistent/directory/file"), OD_OK);
    od_safetensors_writer_destroy(w);
}

/* ---- bad files -------------------------------------------------------------------------------------------------- */

#define ONE(name, dtype, shape, begin, end)                                                                            \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

Test(safetensors, each_rule_is_checked, .init = setup, .fini = teardown) {
    static const struct {
        const char *why, *header;
        size_t data_bytes;
        const char *words;
    } cases[] = {
        {"no object", "[]      ", 0, "'{'"},
        {"leading space", " {}", 0, "'{'"},
        {"empty header", "", 0, "'{'"},
        {"broken JSON", "{\"x\":", 0, "JSON"},
        {"trailing text", "{} x", 0, "JSON"},
        {"data without tensors", "{}", 4, "expected 0 bytes"},
        {"unknown dtype", "{" ONE("x", "F31", "[1]", "0", "4") "}", 4, "F31"},
        {"no dtype", "{\"x\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
        {"no shape", "{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape"},
        {"no offsets", "{\"x\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets"},
        {"not an object", "{\"x\":7}", 4, "dtype"},
        {"negative dimension", "{" ONE("x", "F32", "[-1]", "0", "4") "}", 4, "dimension 0"},
        {"real dimension", "{" ONE("x", "F32", "[1.0]", "0", "4") "}", 4, "dimension 0"},
        {"huge integer", "{" ONE("x", "F32", "[99999999999999999999]", "0", "4") "}", 4, "JSON"},
        {"rank 9", "{" ONE("x", "F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4, "dimensions"},
        {"product overflows to the size", "{" ONE("x", "F32", "[4611686018427387905,1]", "0", "4") "}", 4, "overflows"},
        {"elements overflow", "{" ONE("x", "F32", "[4294967296,4294967296]", "0", "0") "}", 0, "overflows"},
        {"size too small", "{" ONE("x", "F32", "[2]", "0", "4") "}", 4, "expected 8 bytes"},
        {"past the end", "{" ONE("x", "F32", "[2]", "0", "8") "}", 4, "within 4 bytes"},
        {"end before begin", "{" ONE("x", "F32", "[0]", "4", "0") "}", 4, "data_offsets"},
        {"negative offset", "{" ONE("x", "F32", "[1]", "-4", "0") "}", 4, "data_offsets"},
        {"a gap at the start", "{" ONE("x", "F32", "[1]", "4", "8") "}", 8, "a gap"},
        {"a gap", "{" ONE("x", "F32", "[1]", "0", "4") "," ONE("y", "F32", "[1]", "8", "12") "}", 12, "a gap"},
        {"an overlap", "{" ONE("x", "F32", "[2]", "0", "8") "," ONE("y", "F32", "[1]", "4", "8") "}", 8, "an overlap"},
        {"twice the same bytes", "{" ONE("x", "F32", "[1]", "0", "4") "," ONE("y", "F32", "[1]", "0", "4") "}", 4,
         "an overlap"},
        {"data left over", "{" ONE("x", "F32", "[1]", "0", "4") "}", 5, "found 5"},
        {"a name twice", "{" ONE("x", "F32", "[1]", "0", "4") "," ONE("x", "F32", "[1]", "4", "8") "}", 8, "duplicate"},
        {"metadata is no object", "{\"__metadata__\":[]}", 0, "__metadata__"},
        {"metadata is no string", "{\"__metadata__\":{\"a\":1}}", 0, "expected a string"},
        {"control characters in a name", "{" ONE("a\\nb\\u001b", "F32", "[1]", "0", "8") "}", 8, "a?b?"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_header(cases[i].header, cases[i].data_bytes);
        rejected(cases[i].why, cases[i].words);
    }
    /* And what is allowed though we never write it: any order, no padding, other types, empty tensors anywhere. */
    od_safetensors *f = NULL;
    put_header("{" ONE("y", "BF16", "[1]", "4", "6") "," ONE("z", "U8", "[0]", "4", "4") "," ONE("x", "F32", "[]", "0",
                                                                                                 "4") "}",
               6);
    cr_assert_eq(od_safetensors_open(path, &f), OD_OK, "%s", od_error_message());
    cr_assert_eq(od_safetensors_count(f), 3);
    od_safetensors_close(f);
}

Test(safetensors, lengths_that_lie, .init = setup, .fini = teardown) {
    static const uint64_t lengths[] = {0, 9, 100000000, 100000001, UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 7};
    unsigned char data[17] = "        {}      ";
    put(data, 0);
    rejected("nothing", "found 0");
    put(data, 7);
    rejected("7 bytes", "found 7");
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        memcpy(data, &lengths[i], 8);
        put(data, 16);
        rejected("length", lengths[i] ? "at most 8 bytes" : "'{'");
    }
}

Test(safetensors, not_a_file, .init = setup, .fini = teardown) {
    od_safetensors *f = NULL;
    cr_assert_eq(od_safetensors_open(directory, &f), OD_ERR_FORMAT);
    cr_assert_eq(od_safetensors_open(path, &f), OD_ERR_IO);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_assert_eq(od_safetensors_open(path, &f), OD_ERR_FORMAT); /* and does not wait for a writer */
}

Test(safetensors, a_file_that_shrinks, .init = setup, .fini = teardown) {
    od_safetensors *f = NULL;
    float weights[6];
    write_sample();
    cr_assert_eq(od_safetensors_open(path, &f), OD_OK);
    cr_assert_eq(truncate(path, 100), 0);
    cr_assert_eq(od_safetensors_read_as(f, "weights", OD_F32, 6, weights), OD_ERR_FORMAT);
    od_safetensors_close(f);
}

/* Damage a good file at random: it is refused with one line, or it is still consistent and every tensor can be read. */
Test(safetensors, random_damage, .init = setup, .fini = teardown) {
    unsigned char good[1024], bad[1024 + 64];
    size_t size, rejections = 0;
    uint32_t state = 12345;
    const int rounds = 6000;
    write_sample();
    memcpy(good, get(&size), sizeof good);
    cr_assert_lt(size, sizeof good);
    for (int round = 0; round < rounds; round++) {
#define RANDOM(n) (((state = state * 1664525u + 1013904223u) >> 8) % (n))
        size_t bytes = size;
        memcpy(bad, good, size);
        switch (round % 4) {
        case 0: /* bits */
            for (uint32_t k = 0, n = 1 + RANDOM(4); k < n; k++) {
                uint32_t at = RANDOM(size);
                bad[at] ^= (unsigned char)(1u << RANDOM(8));
            }
            break;
        case 1: { /* a byte of the header that JSON gives a meaning to */
            static const char bytes_of_meaning[] = "{}[]\",:0123456789-.eE\\u \n\x80\xff";
            uint32_t at = 8 + RANDOM(size - 61);
            bad[at] = (unsigned char)bytes_of_meaning[RANDOM(sizeof bytes_of_meaning)];
            break;
        }
        case 2: /* the end */
            bytes = RANDOM(size + 64);
            memset(bad + size, ' ', 64);
            break;
        default: { /* a piece copied elsewhere */
            uint32_t n = 1 + RANDOM(24), from = RANDOM(size - n), to = RANDOM(size - n);
            memmove(bad + to, good + from, n);
        }
        }
        put(bad, bytes);
        od_safetensors *f = NULL;
        od_status status = od_safetensors_open(path, &f);
        if (status) {
            cr_assert_eq(status, OD_ERR_FORMAT, "round %d: %s", round, od_error_message());
            cr_assert_null(strchr(od_error_message(), '\n'), "round %d: %s", round, od_error_message());
            rejections++;
            continue;
        }
        for (size_t i = 0; i < od_safetensors_count(f); i++) {
            const od_tensor *t = od_safetensors_at(f, i);
            unsigned char data[1024];
            cr_assert_leq(t->bytes, bytes, "round %d", round);
            cr_assert_eq(od_safetensors_read(f, t, data), OD_OK, "round %d: %s", round, od_error_message());
        }
        od_safetensors_close(f);
    }
    cr_assert_gt(rejections, rounds / 3);
}
