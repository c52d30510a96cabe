#include "train/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "od_config.h"

static const char *const method_names[] = {"simsiam", "byol", NULL};
static const char *const loss_names[] = {"cosine", "normalized", NULL};

const char *od_method_name(od_method method) {
    return method_names[method];
}
const char *od_loss_name(od_loss_kind loss) {
    return loss_names[loss];
}

void od_train_config_default(od_train_config *c) {
    *c = (od_train_config){
        .dataset = "fashion-mnist",
        .downsample = 1,
        .encoder = 0,
        .method = OD_SIMSIAM,
        .head = OD_HEAD_OFFDIAG,
        .loss = OD_LOSS_NORMALIZED,
        .loss_scale = 1,
        .symmetric = true,
        .stop_gradient = true,
        .proj_layers = 2,
        .proj_hidden = 512,
        .proj_dim = 128,
        .proj_bn = true,
        .head_hidden = 256,
        .directpred_every = 1,
        .directpred_rho = 0.3,
        .directpred_eps = 0.01,
        .epochs = 10,
        .batch = 128,
        .lr = 0.05,
        .momentum = 0.9,
        .weight_decay = 5e-4,
        .beta2 = 0.999,
        .lars_eta = 0.02,
        .head_lr = 10,
        .warmup = 100,
        .ema = 0.99,
        .online_lr = 0.1,
        .seed = 0,
        .knn_k = 200,
        .knn_t = 0.1,
        .eval_every = 1,
        .rebalance = true,
        .tensorboard = true,
    };
}

#define T od_train_config
static const od_option rows[] = {
    OD_OPT_HEADING("Data"),
    OD_OPT_STRING(
        T, dataset, "dataset", "NAME",
        "data set: fashion-mnist, mnist, cifar10, cifar100, cifar100-coarse, stl10; folder: your own images in --data"),
    OD_OPT_STRING(T, data, "data", "DIR", "its folder (default: $OFFDIAG_DATA, then the usual places)"),
    OD_OPT_INT(T, limit, "limit", 0, 1e9, "use the first N training images only; 0: all"),
    OD_OPT_INT(T, image_side, "image-side", 0, 1024,
               "folder: side to which each image is resized and cropped first; 0: --image-size, or 64"),
    OD_OPT_INT(T, downsample, "downsample", 1, 16, "average images down by this factor first"),
    OD_OPT_INT(T, image_size, "image-size", 0, 512, "side of the augmented views; 0: the image's own"),
    OD_OPT_CHOICE(T, augment, "augment", od_augment_names, "augmentation policy"),
    OD_OPT_DOUBLE(T, crop_min, "crop-min", 0, 1, "smallest crop area; 0: the policy's own"),
    OD_OPT_HEADING("Model"),
    OD_OPT_CHOICE(T, encoder, "encoder", od_encoder_names, "encoder"),
    OD_OPT_CHOICE(T, stem, "stem", od_stem_names,
                  "a ResNet's first layers: 3x3 (cifar), with padding 2 (solo-learn), or 7x7 and pooling (imagenet)"),
    OD_OPT_INT(T, width, "width", 0, 1024, "channels of its first stage; 0: 64 for resnet18, 32 for cnn4"),
    OD_OPT_CHOICE(T, method, "method", method_names,
                  "simsiam: the target is the network itself; byol: its moving average"),
    OD_OPT_CHOICE(T, head, "head", od_head_names,
                  "prediction head; offdiag: starts as I, trains off-diagonal entries only"),
    OD_OPT_CHOICE(T, loss, "loss", loss_names,
                  "normalized: squared error of normalised outputs (batch-normalised: Wen & Li 2022)"),
    OD_OPT_CHOICE(T, out_norm, "out-norm", od_out_norm_names,
                  "normalisation of outputs and targets before the loss; auto: bn for normalized, none for cosine; l2 "
                  "with normalized is BYOL's 2 - 2 cos"),
    OD_OPT_DOUBLE(T, loss_scale, "loss-scale", 1e-6, 1e6, "factor of the loss"),
    OD_OPT_FLAG(T, symmetric, "symmetric", "both views predict each other; =false: view 1 predicts view 2"),
    OD_OPT_FLAG(T, stop_gradient, "stop-gradient", "targets are constants; =false, an ablation: simsiam only"),
    OD_OPT_INT(T, proj_layers, "proj-layers", 2, 3, "projector: linear layers"),
    OD_OPT_INT(T, proj_hidden, "proj-hidden", 1, 65536, "projector: hidden width"),
    OD_OPT_INT(T, proj_dim, "proj-dim", 2, 16384, "projector: output width, the head's size"),
    OD_OPT_FLAG(T, proj_bn, "proj-bn", "projector: last batch norm, without affine"),
    OD_OPT_INT(T, head_hidden, "head-hidden", 1, 65536, "mlp head: hidden width"),
    OD_OPT_INT(T, directpred_every, "directpred-every", 1, 1e6, "directpred head: steps between its settings"),
    OD_OPT_DOUBLE(T, directpred_rho, "directpred-rho", 0, 1, "directpred head: decay of the running correlations"),
    OD_OPT_DOUBLE(T, directpred_eps, "directpred-eps", 0, 100, "directpred head: added to each of its eigenvalues"),
    OD_OPT_HEADING("Optimisation"),
    OD_OPT_INT(T, epochs, "epochs", 1, 1e6, "passes over the training images"),
    OD_OPT_INT(T, steps, "steps", 0, 1e9, "stop after N steps instead; 0: by epochs"),
    OD_OPT_INT(T, batch, "batch", 2, 65536, "images in a step (two views of each)"),
    OD_OPT_INT(T, micro_batch, "micro-batch", 0, 65536,
               "images at a time, gradients summed, batch-norm statistics per part; 0: as many as fit"),
    OD_OPT_CHOICE(T, optimizer, "optimizer", od_optimizer_names, "optimiser"),
    OD_OPT_DOUBLE(T, lr, "lr", 0, 1e3, "peak learning rate, decayed by a cosine to 0"),
    OD_OPT_INT(T, lr_batch, "lr-batch", 0, 65536,
               "--lr is for batches of N images, and scaled by --batch / N; 0: as it is"),
    OD_OPT_DOUBLE(T, momentum, "momentum", 0, 1, "momentum; adam, adamw: beta1"),
    OD_OPT_DOUBLE(T, beta2, "beta2", 0, 1, "adam, adamw: decay of the squares"),
    OD_OPT_DOUBLE(T, lars_eta, "lars-eta", 0, 100, "lars: trust coefficient (clipped; biases and norms take no part)"),
    OD_OPT_DOUBLE(T, weight_decay, "weight-decay", 0, 1, "of encoder and projector"),
    OD_OPT_DOUBLE(T, head_lr, "head-lr", 0, 1e4,
                  "the head's learning rate as a multiple of --lr; constant after warm-up"),
    OD_OPT_FLAG(T, head_decay, "head-decay", "the head's learning rate decays as --lr does"),
    OD_OPT_DOUBLE(T, head_weight_decay, "head-weight-decay", 0, 1, "of the head"),
    OD_OPT_INT(T, warmup, "warmup", 0, 1e9, "linear warm-up, in steps"),
    OD_OPT_INT(T, warmup_epochs, "warmup-epochs", 0, 1e6, "linear warm-up, in epochs; 0: --warmup"),
    OD_OPT_DOUBLE(T, warmup_lr, "warmup-lr", 0, 1e3, "learning rate at its start"),
    OD_OPT_FLAG(T, cosine_after_warmup, "cosine-after-warmup", "the cosine starts after the warm-up, not with the run"),
    OD_OPT_DOUBLE(T, ema, "ema", 0, 1, "byol: the target's decay at the start; rises to 1 by a cosine"),
    OD_OPT_FLAG(T, ema_constant, "ema-constant", "byol: keep the decay constant"),
    OD_OPT_U64(T, seed, "seed", "seed of weights, order and augmentation"),
    OD_OPT_HEADING("Evaluation"),
    OD_OPT_INT(T, knn_k, "knn-k", 1, 1e6, "neighbours in the kNN vote"),
    OD_OPT_DOUBLE(T, knn_t, "knn-t", 1e-3, 1e3, "temperature of its weights exp(similarity / T)"),
    OD_OPT_INT(T, knn_bank, "knn-bank", 0, 1e9, "training images in its memory; 0: all in use"),
    OD_OPT_INT(T, knn_queries, "knn-queries", 0, 1e9, "test images asked; 0: all"),
    OD_OPT_FLAG(T, online_linear, "online-linear", "train a linear classifier beside, on features without gradient"),
    OD_OPT_DOUBLE(T, online_lr, "online-lr", 0, 1e3, "its learning rate (momentum 0.9, no weight decay, cosine)"),
    OD_OPT_INT(T, eval_every, "eval-every", 0, 1e6, "epochs between evaluations; 0: before and after only"),
    OD_OPT_HEADING("Run"),
    OD_OPT_STRING(T, out, "out", "DIR", "the run's directory (default: a new one under runs/)"),
    OD_OPT_STRING(T, device, "device", "SPEC",
                  "auto, gpu, cpu, P:D or part of a name (default: $OFFDIAG_DEVICE, then auto); several with commas, "
                  "all or gpus: one run over all of them"),
    OD_OPT_STRING(
        T, split, "split", "N:N",
        "several devices: how a batch is divided over them, in their order; default: by their measured speed"),
    OD_OPT_FLAG(T, rebalance, "rebalance", "divide again at an epoch's end where their times came to differ by 10 %"),
    OD_OPT_FLAG(T, keep_going, "keep-going", "a device that fails drops out and the others go on with its share"),
    OD_OPT_CHOICE(T, kernels, "kernels", od_family_names, "kernel family"),
    OD_OPT_INT(T, memory, "memory", 0, 1e9, "device memory to use, in MiB; 0: most of what there is"),
    OD_OPT_INT(T, checkpoint_every, "checkpoint-every", 0, 1e9, "steps between checkpoints, besides each epoch's end"),
    OD_OPT_FLAG(T, tensorboard, "tensorboard", "event files for TensorBoard in the run's directory; =false: none"),
    OD_OPT_FLAG(T, resume, "resume", "continue the run in --out, with its own options"),
    OD_OPT_FLAG(T, quiet, "quiet", "no progress"),
};
#undef T

od_options od_train_options(od_train_config *config) {
    return (od_options){.rows = rows, .count = sizeof rows / sizeof *rows, .target = config};
}

/* ---- presets and files ------------------------------------------------------------------------------------------ */

json_t *od_train_config_to_json(const od_train_config *config) {
    od_train_config copy = *config;
    od_options table = od_train_options(&copy);
    json_t *object = json_object();
    if (!object || od_options_to_json(&table, object)) {
        json_decref(object);
        return NULL;
    }
    return object;
}

/* A failed read leaves the configuration as it was. */
od_status od_train_config_from_json(od_train_config *config, const json_t *object, const char *origin) {
    od_train_config copy = *config;
    od_options table = od_train_options(&copy);
    od_status status = od_options_from_json(&table, object, origin);
    if (!status)
        *config = copy;
    return status;
}

od_status od_train_config_file(od_train_config *config, const char *path) {
    json_t *document = NULL;
    od_status status = od_json_read(path, &document);
    if (status)
        return status;
    /* a run's config.json wraps its options: {"options": {...}, "run": {...}} */
    const json_t *options = json_object_get(document, "options");
    status = od_train_config_from_json(config, options ? options : document, path);
    json_decref(document);
    return status;
}

/* presets/NAME.json in the first data folder that has it; NULL without memory. */
static char *preset_path(const char *name) {
    const char *from_env = getenv("OFFDIAG_DATADIR");
    const char *roots[] = {from_env ? from_env : OD_SOURCE_DATA_DIR, OD_SOURCE_DATA_DIR, OD_INSTALLED_DATA_DIR};
    char file[128];
    snprintf(file, sizeof file, "presets/%s.json", name);
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++) {
        char *path = od_path_join(roots[i], file);
        if (!path || access(path, R_OK) == 0)
            return path;
        free(path);
    }
    return od_path_join(OD_INSTALLED_DATA_DIR, file);
}

const char *const od_preset_names[] = {"quickstart",
                                       "reference-cnn4",
                                       "study-cnn4",
                                       "study-cnn4-byol",
                                       "study-resnet18",
                                       "cifar10-resnet18",
                                       "simsiam-cifar10-solo-learn",
                                       "byol-cifar10-solo-learn",
                                       "simsiam-cifar10-paper",
                                       "simsiam-cifar10-lightly",
                                       "byol-cifar10-lightly",
                                       NULL};

od_status od_train_config_preset(od_train_config *config, const char *name) {
    if (strchr(name, '/') || strlen(name) > 64)
        return od_fail(OD_ERR_USAGE, "a preset is a name, not a path: %.80s (for a file, use --config)", name);
    char *path = preset_path(name);
    if (!path)
        return od_fail(OD_ERR_MEMORY, "no memory for the path of preset %s", name);
    od_status status = OD_OK;
    if (access(path, R_OK)) {
        const char *near = od_nearest_name(name, od_preset_names);
        status = od_fail(OD_ERR_USAGE, "no preset \"%s\" (looked for %s)%s%s", name, path,
                         near ? "; did you mean " : "", near ? near : "");
    } else {
        status = od_train_config_file(config, path);
    }
    free(path);
    return status;
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

int od_train_image_side(const od_train_config *c) {
    return c->image_side ? c->image_side : c->image_size;
}

int od_train_width(const od_train_config *c) {
    if (c->width)
        return c->width;
    return strcmp(od_encoder_names[c->encoder], "cnn4") == 0 ? 32 : 64;
}

od_status od_train_config_check(const od_train_config *c) {
    bool known = false;
    for (const char *const *name = od_dataset_names(); *name; name++)
        known = known || strcmp(*name, c->dataset) == 0;
    if (!known) {
        const char *near = od_nearest_name(c->dataset, od_dataset_names());
        return od_fail(OD_ERR_USAGE, "--dataset: no data set \"%s\"%s%s", c->dataset, near ? "; did you mean " : "",
                       near ? near : "");
    }
    if (c->stem != OD_STEM_CIFAR && strcmp(od_encoder_names[c->encoder], "cnn4") == 0)
        return od_fail(OD_ERR_USAGE, "--stem %s: encoder cnn4 has one stem only, the ResNets have these",
                       od_stem_names[c->stem]);
    if (c->micro_batch && (c->micro_batch < 2 || c->batch % c->micro_batch))
        return od_fail(OD_ERR_USAGE, "--micro-batch %d must be at least 2 and divide --batch %d", c->micro_batch,
                       c->batch);
    if (!c->stop_gradient && c->method != OD_SIMSIAM)
        return od_fail(OD_ERR_USAGE, "--stop-gradient=false: for --method simsiam; BYOL's target gets no gradient");
    if ((c->optimizer == OD_ADAM || c->optimizer == OD_ADAMW) && (c->momentum >= 1 || c->beta2 >= 1))
        return od_fail(OD_ERR_USAGE, "--optimizer %s: --momentum %g and --beta2 %g must be below 1",
                       od_optimizer_names[c->optimizer], c->momentum, c->beta2);
    if (!c->out[0])
        return od_fail(OD_ERR_USAGE, "--out: needs a directory for the run");
    return OD_OK;
}

void od_train_model_config(od_model_config *out, const od_train_config *c, int image_side) {
    *out = (od_model_config){
        .encoder = od_encoder_names[c->encoder],
        .stem = c->stem,
        .width = od_train_width(c),
        .image_size = c->image_size ? c->image_size : image_side,
        .proj_hidden = c->proj_hidden,
        .proj_dim = c->proj_dim,
        .proj_bn = c->proj_bn,
        .head_hidden = c->head_hidden,
        .head = c->head,
        .method = c->method,
        .loss = c->loss,
        .out_norm = c->out_norm,
        .one_sided = !c->symmetric,
        .target_gradient = !c->stop_gradient,
        .proj_layers = c->proj_layers,
        .directpred_every = c->directpred_every,
        .directpred_rho = (float)c->directpred_rho,
        .directpred_eps = (float)c->directpred_eps,
        .optimizer = c->optimizer,
        .seed = c->seed,
    };
}

/* What a resumed run may change: where and how it runs, not what it computes. */
static bool may_change(const char *name) {
    static const char *const names[] = {"data",    "out",    "device",           "split",  "rebalance", "keep-going",
                                        "kernels", "memory", "checkpoint-every", "resume", "quiet",     "tensorboard"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

const char *od_train_config_difference(const od_train_config *a, const od_train_config *b) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const od_option *row = &rows[i];
        if (row->kind == OD_OPTION_HEADING || may_change(row->name))
            continue;
        const char *left = (const char *)a + row->offset, *right = (const char *)b + row->offset;
        bool text = row->kind == OD_OPTION_STRING;
        if (text ? strcmp(left, right) != 0 : memcmp(left, right, row->size) != 0)
            return row->name;
    }
    return NULL;
}

/* ---- augmentation policies -------------------------------------------------------------------------------------- */

/* simsiam: solo-learn's at 32 px, with blur; light: Chen & He's at 32 px, without blur, the cheapest sensible; grey:
 * for grey images: no hue, saturation or grey; byol: solo-learn's at 32 px, one view solarised; byol-blur: at 96 px and
 * more, the views blurred unlike. */
const char *const od_augment_names[] = {"simsiam", "light", "grey", "none", "byol", "byol-blur", NULL};
enum { AUGMENT_SIMSIAM, AUGMENT_LIGHT, AUGMENT_GREY, AUGMENT_NONE, AUGMENT_BYOL, AUGMENT_BYOL_BLUR };

static void name_policy(od_augment_policy *p, int name, bool second) {
    *p = (od_augment_policy){.crop_scale_min = 0.08f,
                             .crop_scale_max = 1,
                             .crop_ratio_min = 3.0f / 4,
                             .crop_ratio_max = 4.0f / 3,
                             .jitter_p = 0.8f,
                             .brightness = 0.4f,
                             .contrast = 0.4f,
                             .saturation = 0.4f,
                             .hue = 0.1f,
                             .grey_p = 0.2f,
                             .blur_p = 0.5f,
                             .blur_sigma_min = 0.1f,
                             .blur_sigma_max = 2,
                             .solarize_threshold = 0.5f,
                             .flip_p = 0.5f};
    switch (name) {
    case AUGMENT_SIMSIAM:
        break;
    case AUGMENT_LIGHT:
        p->crop_scale_min = 0.2f;
        p->blur_p = 0;
        break;
    case AUGMENT_GREY:
        p->crop_scale_min = 0.2f;
        p->saturation = p->hue = p->grey_p = p->blur_p = 0;
        break;
    case AUGMENT_BYOL:
    case AUGMENT_BYOL_BLUR:
        p->saturation = 0.2f;
        p->blur_p = name == AUGMENT_BYOL ? 0 : second ? 0.1f : 1;
        p->solarize_p = second ? 0.2f : 0;
        break;
    default:
        p->crop_scale_min = p->crop_ratio_min = p->crop_ratio_max = 1;
        p->jitter_p = p->grey_p = p->blur_p = p->flip_p = 0;
    }
}

void od_augment_policies_named(od_augment_policy views[2], int name, double crop_min, const float mean[3],
                               const float std[3]) {
    for (int view = 0; view < 2; view++) {
        od_augment_policy *p = &views[view];
        name_policy(p, name, view == 1);
        if (crop_min > 0 && name != AUGMENT_NONE)
            p->crop_scale_min = (float)crop_min;
        memcpy(p->mean, mean, sizeof p->mean);
        memcpy(p->std, std, sizeof p->std);
    }
}
