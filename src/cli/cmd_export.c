/* offdiag export: the encoder under torchvision's names. */
#include <stdio.h>

#include "base/options.h"
#include "cli/cli.h"
#include "offdiag/train.h"

typedef struct export_args {
    char out[1024];
} export_args;

static const od_option rows[] = {
    OD_OPT_STRING(export_args, out, "out", "FILE", "the .safetensors file to write"),
};

od_status cmd_export(int argc, char **argv) {
    export_args args = {0};
    od_options table = {.rows = rows, .count = 1, .target = &args};
    od_positionals run = {
        .min = 1,
        .max = 1,
        .usage = "RUN|CHECKPOINT --out FILE",
        .about = "Write a run's encoder as safetensors with torchvision's key names. ResNets load there with "
                 "conv1 replaced by a 3x3 convolution of stride 1, maxpool and fc by Identity."};
    bool help = false;
    od_status status = od_options_parse(&table, 1, &run, argc, argv, &help);
    if (status || help)
        return status;
    if (!args.out[0])
        return od_fail(OD_ERR_USAGE, "export: needs --out FILE");
    if ((status = od_export(run.values[0], args.out)))
        return status;
    printf("%s\n", args.out);
    return OD_OK;
}
