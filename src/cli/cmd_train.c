/* offdiag train: options -> configuration -> od_train -> a summary on stdout. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "dist/team.h"
#include "train/checkpoint.h"
#include "train/config.h"

typedef struct train_args { /* what is not part of a run's configuration */
    char preset[64], config[1024];
} train_args;

static const od_option arg_rows[] = {
    OD_OPT_STRING(train_args, preset, "preset", "NAME", "start from data/presets/NAME.json"),
    OD_OPT_STRING(train_args, config, "config", "FILE", "then from a JSON file, such as a run's config.json"),
};

static od_status parse(train_args *args, od_train_config *config, int argc, char **argv, bool *help) {
    od_options tables[] = {{.rows = arg_rows, .count = 2, .target = args}, od_train_options(config)};
    od_positionals none = {.max = 0,
                           .usage = "",
                           .about = "Train an encoder without labels. Flags override --config, which "
                                    "overrides --preset."};
    return od_options_parse(tables, 2, &none, argc, argv, help);
}

/* runs/NAME, or the first of runs/NAME-2, -3, ... that holds no run yet. */
static void choose_out(od_train_config *c, const char *preset) {
    char name[256];
    if (preset[0])
        snprintf(name, sizeof name, "runs/%s", preset);
    else
        snprintf(name, sizeof name, "runs/%s-%s-%s-%s", c->dataset, od_encoder_names[c->encoder],
                 od_method_name(c->method), od_head_name(c->head));
    snprintf(c->out, sizeof c->out, "%s", name);
    for (int i = 2; access(c->out, F_OK) == 0; i++)
        snprintf(c->out, sizeof c->out, "%s-%d", name, i);
}

/* The options of the run in config->out; flags given again may only repeat them or say where to run. */
static od_status load_resumed(od_train_config *config) {
    od_checkpoint_info *info = malloc(sizeof *info);
    od_safetensors *file = NULL;
    char *path = NULL;
    if (!info)
        return od_fail(OD_ERR_MEMORY, "no memory for a configuration");
    od_status status = config->out[0] ? OD_OK : od_fail(OD_ERR_USAGE, "--resume needs --out DIR, the run to continue");
    if (!status && !(status = od_checkpoint_path(config->out, &path)) &&
        !(status = od_checkpoint_open(path, &file, info))) {
        *config = info->config;
        config->quiet = false; /* said anew each time */
    }
    od_safetensors_close(file);
    free(path);
    free(info);
    return status;
}

/* Defaults, then preset, then file, then (when resuming) the run's own options, then flags. */
static od_status configure(od_train_config *config, train_args *args, int argc, char **argv, bool *help) {
    od_train_config_default(config);
    od_train_config flags = *config;
    od_status status = parse(args, &flags, argc, argv, help);
    if (status || *help)
        return status;
    if (flags.resume) {
        *config = flags;
        if ((status = load_resumed(config)) && od_world_rank() == 0)
            return status; /* the other ranks have it from the first */
    } else if ((args->preset[0] && (status = od_train_config_preset(config, args->preset))) ||
               (args->config[0] && (status = od_train_config_file(config, args->config)))) {
        return status;
    }
    config->out[0] = 0; /* a stored configuration says what to compute, not where */
    config->resume = false;
    if ((status = parse(args, config, argc, argv, help)))
        return status;
    if (!config->out[0])
        choose_out(config, args->preset);
    return OD_OK;
}

static void print_percent(double x) {
    if (isfinite(x))
        printf("%.2f %%", 100 * x);
    else
        printf("not measured");
}

static void summarise(const od_train_config *c, const train_args *args, const od_train_result *r) {
    int directions = c->proj_dim < c->batch ? c->proj_dim : c->batch;
    printf("\n%-16s", "kNN accuracy");
    print_percent(r->knn_before);
    printf(" before training, ");
    print_percent(r->knn);
    printf(" after (k %d, T %g)\n", c->knn_k, c->knn_t);
    if (isfinite(r->online))
        printf("%-16s%.2f %%\n", "Online linear", 100 * r->online);
    if (isfinite(r->effective_rank))
        printf("%-16s%.1f of %d directions in use\n", "Effective rank", r->effective_rank, directions);
    printf("%-16s%llu steps, %.0f images/s, %.0f s in all\n", "Training", (unsigned long long)r->steps, r->images_per_s,
           r->seconds);
    printf("%-16s%s (config.json, metrics.jsonl, checkpoint.safetensors)\n", "Run", c->out);
    printf("%-16soffdiag eval %s --protocol linear\n", "Try next", c->out);
    printf("%-16soffdiag export %s --out encoder.safetensors\n", "", c->out);
    printf("%-16soffdiag report %s\n", "", c->out);
    if (c->head != OD_HEAD_NONE)
        printf("%-16soffdiag train%s%s --head none   (the same without a head: it collapses)\n", "",
               args->preset[0] ? " --preset " : "", args->preset);
}

od_status cmd_train(int argc, char **argv) {
    od_train_config config;
    train_args args = {0};
    od_train_result result;
    bool help = false;
    od_status status = od_world_begin();
    if (status || (status = configure(&config, &args, argc, argv, &help)) || help)
        return status;
    if ((status = od_train(&config, &result)))
        return status;
    if (result.interrupted)
        return od_fail(OD_ERR_INTERRUPTED,
                       "interrupted at step %llu; the checkpoint is written, --resume --out %s goes on",
                       (unsigned long long)result.steps, config.out);
    if (od_world_rank() == 0)
        summarise(&config, &args, &result);
    return OD_OK;
}
