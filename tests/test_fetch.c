/* offdiag fetch against a server on the loopback address: whole, broken, hostile and absent archives. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "od_config.h"
#include "run_cli.h"

#if OD_HAVE_FETCH
static pid_t server;
static char base[64]; /* http://127.0.0.1:PORT */

static void start_server(void) {
    cli_setup();
    const char *root = getenv("OFFDIAG_SOURCE_ROOT"), *folder = in_scratch("server");
    char script[1024];
    (void)snprintf(script, sizeof script, "%s/tests/fetch_server.py", root ? root : ".");
    cr_assert_eq(mkdir(folder, 0700), 0);
    server = fork();
    if (server == 0) {
        (void)execlp("python3", "python3", script, folder, (char *)NULL);
        _exit(127);
    }
    char *port = NULL;
    for (int i = 0; i < 3000 && !port; i++) {
        (void)usleep(10000);
        port = slurp(in_scratch("server/port"), NULL);
    }
    cr_assert_not_null(port, "the server did not start");
    (void)snprintf(base, sizeof base, "http://127.0.0.1:%s", port);
    (void)unsetenv("http_proxy");
}

static void stop_server(void) {
    (void)kill(server, SIGKILL);
    (void)waitpid(server, NULL, 0);
    cli_teardown();
}

TestSuite(fetch, .init = start_server, .fini = stop_server);

static const char *checksum(const char *file) {
    static char text[OD_SHA256_TEXT + 8];
    size_t bytes = 0;
    char *data = slurp(in_scratch("server/%s", file), &bytes);
    (void)memcpy(text, "sha256:", 8);
    od_sha256(text + 7, data, bytes);
    free(data);
    return text;
}

/* Fetch `file` from base/place as CIFAR-100. */
static cli_result fetch(const char *place, const char *file) {
    return cli("fetch cifar100 --data %s --url %s/%s%s --checksum %s", in_scratch("d"), base, place, file,
               checksum(file));
}

static void expect_nothing_stays(const char *what) {
    struct stat info;
    DIR *d = opendir(in_scratch("d"));
    cr_expect(stat(in_scratch("escaped"), &info) && stat(in_scratch("server/escaped"), &info), "%s escaped", what);
    cr_assert_not_null(d);
    for (struct dirent *e; (e = readdir(d));)
        cr_expect(e->d_name[0] == '.' && strlen(e->d_name) < 3, "%s left %s", what, e->d_name);
    (void)closedir(d);
}

static void expect_whole(void) {
    size_t bytes = 0;
    char *data = slurp(in_scratch("d/cifar-100-binary/train.bin"), &bytes);
    cr_assert(data && bytes == 100000);
    for (unsigned i = 0; i < bytes; i++)
        cr_assert_eq((unsigned char)data[i], (unsigned long)i * i % 251);
    free(data);
    cr_expect_eq(files_with(in_scratch("d"), "partial"), 0);
}

Test(fetch, whole) {
    cli_result r = fetch("", "good.tgz");
    cli_expect(&r, 0, "downloading");
    cr_expect(strstr(r.out, "fetched and checked"), "%s", r.out);
    expect_whole();
    r = fetch("", "good.tgz");
    cli_expect(&r, 0, "");
    cr_expect(strstr(r.out, "there already"), "%s", r.out);
    (void)unlink(in_scratch("d/cifar-100-binary/test.bin"));
    r = fetch("", "good.tgz");
    cli_expect(&r, 1, "test.bin|move it away");
}

Test(fetch, from_a_file) {
    cli_result r = cli("fetch cifar100 --data %s --url file://%s --checksum %s --quiet", in_scratch("d"),
                       in_scratch("server/good.tgz"), checksum("good.tgz"));
    cli_expect(&r, 0, "");
    cr_expect_str_empty(r.err);
    expect_whole();
}

/* Two breaks in one run; each goes on where the last one stopped. */
Test(fetch, breaks_are_resumed) {
    cli_result r = fetch("cut/", "good.tgz");
    cli_expect(&r, 0, "");
    expect_whole();
    char *log = slurp(in_scratch("server/log"), NULL), path[64];
    unsigned first = 0, second = 0;
    cr_assert_eq(sscanf(log, "%63s - %63s %u %63s %u", path, path, &first, path, &second), 5, "%s", log);
    cr_expect(first > 0 && second > first, "%s", log);
}

/* What an earlier process left is used, unless it is the front of something else. */
Test(fetch, earlier_parts) {
    size_t bytes = 0;
    char *archive = slurp(in_scratch("server/good.tgz"), &bytes), *log;
    for (int wrong = 0; wrong < 2; wrong++)
        for (int ranges = 0; ranges < 2; ranges++) {
            cr_assert(mkdir(in_scratch("d"), 0700) == 0 || wrong || ranges);
            cr_assert_eq(mkdir(in_scratch("d/.cifar100.partial"), 0700), 0);
            if (wrong)
                memset(archive, 7, 500);
            spew(in_scratch("d/.cifar100.partial/cifar-100-binary.tar.gz"), archive, 500);
            (void)unlink(in_scratch("server/log"));
            cli_result r = fetch(ranges ? "" : "norange/", "good.tgz");
            cli_expect(&r, 0, "");
            expect_whole();
            log = slurp(in_scratch("server/log"), NULL);
            cr_expect(strstr(log, "good.tgz 500"), "%s", log);
            cr_expect_eq(strstr(log, "good.tgz -") != NULL, wrong && ranges, "wrong %d, ranges %d: %s", wrong, ranges,
                         log);
            (void)unlink(in_scratch("d/cifar-100-binary/train.bin"));
            (void)unlink(in_scratch("d/cifar-100-binary/test.bin"));
            (void)rmdir(in_scratch("d/cifar-100-binary"));
        }
}

/* Refused, each with its reason; not a file stays. */
Test(fetch, hostile_archives) {
    static const struct {
        const char *file, *words;
    } cases[] = {{"up.tgz", "outside"},
                 {"absolute.tgz", "outside"},
                 {"beside.tgz", "outside"},
                 {"symlink.tgz", "a link"},
                 {"hardlink.tgz", "a link"},
                 {"device.tgz", "a device"},
                 {"twice.tgz", "twice"},
                 {"many.tgz", "100 entries"},
                 {"short.tgz", "broken archive"},
                 {"noise.tgz", "broken"},
                 {"claim.tgz", "claims 1099511627776"},
                 {"bomb.tgz", "more than it should"},
                 {"lacks.tgz", "test.bin"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cli_result r = fetch("", cases[i].file);
        cli_expect(&r, 1, cases[i].words);
        expect_nothing_stays(cases[i].file);
    }
}

Test(fetch, wrong_checksum_or_size) {
    cli_result r = cli("fetch cifar100 --data %s --url %s/good.tgz --checksum md5:00000000000000000000000000000000",
                       in_scratch("d"), base);
    cli_expect(&r, 1, "expected checksum md5:0000|nothing of it was kept");
    expect_nothing_stays("a wrong checksum");
    r = cli("fetch cifar100 --data %s --url %s/good.tgz", in_scratch("d"), base);
    cli_expect(&r, 1, "expected 168513733 bytes, the server offers");
    expect_nothing_stays("a wrong size");
}

Test(fetch, no_server_or_file) {
    cli_result r = cli("fetch cifar100 --data %s --url %s/none.tgz", in_scratch("d"), base);
    cli_expect(&r, 1, "404");
    expect_nothing_stays("404");
    r = cli("fetch cifar100 --data %s --url http://127.0.0.1:1/x.tgz", in_scratch("d"));
    cli_expect(&r, 1, "cannot download|file:///");
    expect_nothing_stays("no server");
    r = cli("fetch cifar100 --data %s --url ftp://127.0.0.1/x.tgz", in_scratch("d"));
    cli_expect(&r, 1, "cannot download");
    r = cli("fetch stl11");
    cli_expect(&r, 2, "stl10");
    r = cli("fetch cifar100 --checksum md5:12");
    cli_expect(&r, 2, "--checksum");
}

Test(fetch, one_at_a_time) {
    cr_assert_eq(mkdir(in_scratch("d"), 0700), 0);
    cr_assert_eq(mkdir(in_scratch("d/.cifar100.partial"), 0700), 0);
    DIR *d = opendir(in_scratch("d/.cifar100.partial"));
    cr_assert(d && flock(dirfd(d), LOCK_EX) == 0);
    cli_result r = fetch("", "good.tgz");
    cli_expect(&r, 1, "another offdiag fetch");
    (void)closedir(d);
}

/* Four files instead of an archive; all or none. */
Test(fetch, several_files) {
    static const char *const names[] = {"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
                                        "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"};
    char sums[400] = "";
    for (int i = 0; i < 4; i++) {
        if (i < 3)
            spew(in_scratch("server/%s", names[i]), names[i], 10 + (size_t)i);
        strcat(sums, i ? "," : "");
        strcat(sums, i < 3 ? checksum(names[i]) : "sha256:");
    }
    char last[OD_SHA256_TEXT];
    od_sha256(last, "labels", 6);
    strcat(sums, last);
    cli_result r = cli("fetch mnist --data %s --url %s --checksum %s", in_scratch("d"), base, sums);
    cli_expect(&r, 1, "404");
    cr_expect_neq(access(in_scratch("d/mnist"), F_OK), 0);
    spew(in_scratch("server/%s", names[3]), "labels", 6);
    r = cli("fetch mnist --data %s --url %s --checksum %s", in_scratch("d"), base, sums);
    cli_expect(&r, 0, "");
    cr_expect_eq(files_with(in_scratch("d/mnist"), ".gz"), 4);
    char *log = slurp(in_scratch("server/log"), NULL);
    cr_expect(!strstr(strstr(log, names[3]), names[0]), "what was whole is not fetched again: %s", log);
}
#else
Test(fetch, not_in_this_build) {
    cli_result r = cli("fetch cifar10");
    cli_expect(&r, 1, "libcurl");
}
#endif
