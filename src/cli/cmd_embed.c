/* offdiag embed: features of a data set as NumPy arrays. */
#include <stdio.h>

#include "base/options.h"
#include "cli/cli.h"
#include "dist/team.h"
#include "offdiag/train.h"

static const char *const splits[] = {"test", "train", NULL};

#define T od_embed_options
static const od_option rows[] = {
    OD_OPT_STRING(T, out, "out", "FILE", "features (n, F), float32 .npy"),
    OD_OPT_STRING(T, labels, "labels", "FILE", "also labels (n), int32 .npy"),
    OD_OPT_STRING(T, images, "images", "FILE", "also the encoder's inputs (n, S, S, 4), normalised, float32 .npy"),
    OD_OPT_CHOICE(T, split, "split", splits, "which images"),
    OD_OPT_INT(T, limit, "limit", 0, 1e9, "the first N images; 0: all"),
    OD_OPT_STRING(T, data, "data", "DIR", "the data set's folder (default: where the run found it)"),
    OD_OPT_STRING(T, device, "device", "SPEC",
                  "device, or several: A,B, all, gpus (default: $OFFDIAG_DEVICE, then auto)"),
    OD_OPT_CHOICE(T, kernels, "kernels", od_family_names, "kernel family"),
};
#undef T

od_status cmd_embed(int argc, char **argv) {
    od_embed_options options = {0};
    od_options table = {.rows = rows, .count = sizeof rows / sizeof *rows, .target = &options};
    od_positionals run = {.min = 1,
                          .max = 1,
                          .usage = "RUN|CHECKPOINT --out FILE.npy",
                          .about = "Write the encoder's features of the run's data set, in evaluation mode."};
    bool help = false;
    int n = 0, d = 0;
    od_status status = od_world_begin();
    if (status || (status = od_options_parse(&table, 1, &run, argc, argv, &help)) || help)
        return status;
    if (!options.out[0])
        return od_fail(OD_ERR_USAGE, "embed: needs --out FILE.npy");
    if ((status = od_embed(run.values[0], &options, &n, &d)) || od_world_rank() > 0)
        return status;
    printf("%s: %d x %d\n", options.out, n, d);
    return OD_OK;
}
