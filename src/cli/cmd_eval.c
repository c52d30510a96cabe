/* offdiag eval: how good are the features of a checkpoint? */
#include <math.h>
#include <stdio.h>

#include "base/json.h"
#include "base/options.h"
#include "cli/cli.h"
#include "dist/team.h"
#include "offdiag/train.h"

typedef struct eval_args {
    od_eval_options eval;
    bool json;
} eval_args;

static const char *const protocols[] = {"knn", "linear", NULL};

#define T eval_args
static const od_option rows[] = {
    OD_OPT_CHOICE(T, eval.protocol, "protocol", protocols,
                  "knn: weighted vote of neighbours; linear: a classifier on frozen features"),
    OD_OPT_INT(T, eval.k, "k", 0, 1e6, "kNN: neighbours; 0: the run's own"),
    OD_OPT_DOUBLE(T, eval.t, "t", 0, 1e3, "kNN: temperature; 0: the run's own"),
    OD_OPT_INT(T, eval.bank, "bank", 0, 1e9, "kNN: training images in memory; 0: the run's own"),
    OD_OPT_INT(T, eval.queries, "queries", 0, 1e9, "kNN: test images asked; 0: the run's own"),
    OD_OPT_INT(T, eval.linear_epochs, "epochs", 0, 1e5, "linear: passes over the training features; 0: 100"),
    OD_OPT_DOUBLE(T, eval.linear_lr, "lr", 0, 1e4, "linear: learning rate; 0: chosen on held-out training images"),
    OD_OPT_FLAG(T, eval.folds, "folds",
                "linear: mean over the data set's predefined folds (stl10: ten of 1,000 images)"),
    OD_OPT_U64(T, eval.seed, "seed", "linear: seed of the shuffles"),
    OD_OPT_STRING(T, eval.data, "data", "DIR", "the data set's folder (default: where the run found it)"),
    OD_OPT_STRING(T, eval.device, "device", "SPEC",
                  "device, or several: A,B, all, gpus (default: $OFFDIAG_DEVICE, then auto)"),
    OD_OPT_CHOICE(T, eval.kernels, "kernels", od_family_names, "kernel family"),
    OD_OPT_FLAG(T, json, "json", "one JSON document"),
};
#undef T

static od_status print_json(const eval_args *args, const od_eval_result *r) {
    const char *protocol = protocols[args->eval.protocol];
    json_t *document = json_pack("{s:s, s:f, s:s, s:s, s:i, s:I, s:i, s:i}", "protocol", protocol, "accuracy",
                                 r->accuracy, "dataset", r->dataset, "encoder", r->encoder, "width", r->width, "steps",
                                 (json_int_t)r->steps, "bank", r->bank, "queries", r->queries);
    if (!document)
        return od_fail(OD_ERR_MEMORY, "no memory for a JSON document");
    if (args->eval.protocol == 0) {
        json_object_set_new(document, "k", json_integer(r->k));
        json_object_set_new(document, "t", json_real(r->t));
        json_object_set_new(document, "feature_rank", json_real(r->feature_rank));
    } else {
        json_object_set_new(document, "lr", json_real(r->linear_lr));
        json_object_set_new(document, "epochs", json_integer(r->linear_epochs));
        json_object_set_new(document, "folds", json_integer(r->folds));
    }
    od_status status = od_json_print(document);
    json_decref(document);
    return status;
}

od_status cmd_eval(int argc, char **argv) {
    eval_args args = {0};
    od_eval_result r;
    od_options table = {.rows = rows, .count = sizeof rows / sizeof *rows, .target = &args};
    od_positionals run = {
        .min = 1, .max = 1, .usage = "RUN|CHECKPOINT", .about = "Evaluate a run's encoder on its data set."};
    bool help = false;
    od_status status = od_world_begin();
    if (status || (status = od_options_parse(&table, 1, &run, argc, argv, &help)) || help)
        return status;
    if ((status = od_evaluate(run.values[0], &args.eval, &r)) || od_world_rank() > 0)
        return status;
    if (args.json)
        return print_json(&args, &r);
    printf("%s accuracy %.2f %%\n", args.eval.protocol ? "linear" : "kNN", 100 * r.accuracy);
    if (args.eval.protocol == 0)
        printf("k %d, T %g, %d training images, %d queries; effective rank of features %.1f\n", r.k, r.t, r.bank,
               r.queries, r.feature_rank);
    else
        printf("lr %g, %d epochs, batch 256, %d training and %d test images%s\n", r.linear_lr, r.linear_epochs, r.bank,
               r.queries, r.folds ? "; mean over the data set's folds, the learning rate of the last" : "");
    printf("%s width %d, %llu steps, %s\n", r.encoder, r.width, (unsigned long long)r.steps, r.dataset);
    return OD_OK;
}
