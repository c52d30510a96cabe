/* The command line: finds the subcommand, prints the message of a failure, and turns its status into the exit code. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/text.h"
#include "cli/cli.h"
#include "dist/team.h"
#include "od_config.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

static const struct {
    const char *name, *summary;
    od_status (*run)(int argc, char **argv);
} commands[] = {
    {"devices", "list the OpenCL devices and what `auto` takes", cmd_devices},
    {"selftest", "known answers of every kernel on a device", cmd_selftest},
    {"train", "train an encoder without labels", cmd_train},
    {"eval", "evaluate a run's encoder: kNN or linear", cmd_eval},
    {"embed", "write the features of a run's encoder as .npy", cmd_embed},
    {"export", "write a run's encoder with torchvision's names", cmd_export},
    {"fetch", "download a data set", cmd_fetch},
    {"report", "one page of curves and heads of runs", cmd_report},
    {"study", "compare prediction heads over seeds", cmd_study},
    {"theory", "watch the paper's theory in the small", cmd_theory},
    {"bench", "time matrix products, convolutions or a training step", cmd_bench},
    {"tune", "search kernel parameters for a device", cmd_tune},
    {"matrix", "what is right, and how fast, on each device", cmd_matrix},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *to) {
    (void)fprintf(to, "usage: offdiag COMMAND [options]\n\n"
                      "Train non-contrastive self-supervised encoders on any OpenCL device.\n\n");
    for (size_t i = 0; i < COMMANDS; i++)
        (void)fprintf(to, "  %-10s%s\n", commands[i].name, commands[i].summary);
    (void)fprintf(to,
                  "\n`offdiag COMMAND --help` tells a command's options. Variables: OFFDIAG_DEVICE, OFFDIAG_LOG.\n");
}

static int exit_code(od_status status) {
    switch (status) {
    case OD_OK:
        return EXIT_OK;
    case OD_ERR_USAGE:
        return EXIT_USAGE;
    case OD_ERR_INTERRUPTED:
        return EXIT_INTERRUPTED;
    default:
        return EXIT_FAILED;
    }
}

static od_status unknown_command(const char *name) {
    const char *names[COMMANDS + 1] = {NULL};
    for (size_t i = 0; i < COMMANDS; i++)
        names[i] = commands[i].name;
    return od_fail(OD_ERR_USAGE, "unknown command '%.64s'; the nearest one is '%s'", name, od_nearest(name, names));
}

int main(int argc, char **argv) {
    od_status status = OD_OK;
    const char *name = argc > 1 ? argv[1] : NULL;
    size_t i = 0;
    (void)signal(SIGXFSZ, SIG_IGN); /* a file past its limit is an error of the write, as on a full disk */
    if (!name) {
        print_usage(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_usage(stdout);
        return EXIT_OK;
    }
    if (strcmp(name, "--version") == 0) {
        printf("offdiag %s\n", OD_VERSION);
        return EXIT_OK;
    }
    while (i < COMMANDS && strcmp(commands[i].name, name) != 0)
        i++;
    status = i < COMMANDS ? commands[i].run(argc - 1, argv + 1) : unknown_command(name);
    if (fflush(stdout) && !status)
        status = od_fail(OD_ERR_IO, "standard output: cannot write");
    /* of several ranks the one that failed speaks, and of a mistake that all see the first */
    const bool seen_by_all = status == OD_ERR_USAGE || status == OD_ERR_INTERRUPTED;
    const bool silent = od_world_ranks() > 1 && (status == OD_ERR_PEER || (seen_by_all && od_world_rank() > 0));
    if (status && !silent)
        (void)fprintf(stderr, "offdiag: %s\n", od_error_message()[0] ? od_error_message() : od_status_name(status));
    od_world_end(exit_code(status));
    return exit_code(status);
}
