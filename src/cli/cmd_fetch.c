/* offdiag fetch: download a data set, check it, unpack it. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/options.h"
#include "cli/cli.h"
#include "offdiag/data.h"

typedef struct fetch_args {
    char data[1024], url[1024], checksum[512];
    bool quiet;
} fetch_args;

#define T fetch_args
static const od_option rows[] = {
    OD_OPT_STRING(T, data, "data", "DIR", "folder to put it in (default: $OFFDIAG_DATA, then ./data)"),
    OD_OPT_STRING(T, url, "url", "URL", "another place to get it from; file:///PATH for what you have already"),
    OD_OPT_STRING(T, checksum, "checksum", "SUM", "md5:HEX or sha256:HEX of what is at --url, if it is not the usual"),
    OD_OPT_FLAG(T, quiet, "quiet", "no notes and no progress"),
};
#undef T

static atomic_int stop;

static void on_signal(int number) {
    (void)number;
    atomic_store(&stop, 1);
}

od_status cmd_fetch(int argc, char **argv) {
    fetch_args args = {0};
    od_options table = {.rows = rows, .count = sizeof rows / sizeof *rows, .target = &args};
    od_positionals name = {.min = 1,
                           .max = 1,
                           .usage = "cifar10|cifar100|stl10|mnist|fashion-mnist",
                           .about = "Download a data set, check its size and checksum, and unpack it. A download that\n"
                                    "broke off goes on where it stopped."};
    const struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    char path[1024] = "";
    bool help = false, fetched = false;
    od_status status = od_options_parse(&table, 1, &name, argc, argv, &help);
    if (status || help)
        return status;
    const char *env = getenv("OFFDIAG_DATA");
    od_fetch_options options = {.dir = args.data[0]  ? args.data
                                       : env && *env ? env
                                                     : "data",
                                .url = args.url,
                                .checksum = args.checksum,
                                .quiet = args.quiet,
                                .stop = &stop};
    if (!args.quiet)
        od_log_set_default(OD_LOG_INFO);
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    if ((status = od_fetch(name.values[0], &options, path, &fetched)))
        return status;
    printf("%s: %s\n", path, fetched ? "fetched and checked" : "there already");
    return OD_OK;
}
