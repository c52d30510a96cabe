/* Which kernels a device would be asked for: the operations' own self-test cases, whole training steps and the theory,
 * on a device that is only described. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cli/matrix/offline.h"
#include "cli/selftest/runner.h"
#include "device/plan.h"
#include "device/tuning.h"
#include "offdiag/model.h"
#include "offdiag/ops/limits.h"
#include "offdiag/theory.h"
#include "theory/theory.h"

/* ---- work that asks for kernels ---------------------------------------------------------------------------------- */

/* What comes out is wrong, since nothing runs; what was asked for is what counts. */
static od_status ask_operations(od_device *device, const char *groups) {
    od_status status = OD_OK;
    od_check *k = calloc(1, sizeof *k);
    if (!k)
        return od_fail(OD_ERR_MEMORY, "no memory for the self-test's cases");
    for (const od_check_group *g = od_check_groups; g->name && !status; g++) {
        for (int aligned = 0; od_list_holds(groups, g->name) && aligned < 2 && !status; aligned++) {
            k->first_count = k->first_at = 0;
            od_check_begin(k, device, aligned);
            g->run(k);
            od_check_end(k);
            status = k->stopped;
        }
    }
    od_check_free(k);
    free(k);
    return status;
}

static od_status ask_model(od_device *device, const od_model_config *config, int n) {
    const od_optim_rates rates = {.lr = 0.05f, .momentum = 0.9f, .head_lr = 0.05f, .ema_tau = 0.99f, .beta2 = 0.999f};
    const size_t size = (size_t)config->image_size;
    od_model *model = NULL;
    od_span x = OD_NO_SPAN, loss = OD_NO_SPAN, features = OD_NO_SPAN;
    float norm, largest;
    od_status status;
    (void)((status = od_model_create(device, config, n, &model)) ||
           (status = od_span_create(device, (size_t)2 * n * size * size * 4, &x)) ||
           (status = od_span_create(device, 1, &loss)) ||
           (status = od_span_create(device, (size_t)2 * n * od_model_feature_dim(model), &features)) ||
           (status = od_model_step(model, loss, x, n, 1, false)) ||
           (status = od_model_step(model, loss, x, n / 8, 1, false)) || /* few pixels, as of small batches */
           (status = od_model_optimize(model, &rates)) ||
           (status = od_model_features(model, features, OD_NO_SPAN, x, 2 * n)) ||
           (status = od_model_offdiag(model, &norm, &largest)));
    od_model_destroy(model);
    od_buffer_release(x.buffer);
    od_buffer_release(loss.buffer);
    od_buffer_release(features.buffer);
    return status;
}

/* Each encoder and stem, one at the papers' width, and a small one with each way to train. Kernels follow from numbers
 * of pixels and from what divides the channels, so the rest may be narrow: drawing weights is what takes time here. */
static od_status ask_models(od_device *device) {
    od_status status = OD_OK;
    const od_model_config base = {.encoder = "resnet18",
                                  .width = 16,
                                  .image_size = 32,
                                  .proj_hidden = 512,
                                  .proj_dim = 256,
                                  .head_hidden = 128,
                                  .head = OD_HEAD_OFFDIAG,
                                  .seed = 1};
    od_model_config papers = base;
    papers.width = 64;
    papers.proj_hidden = 2048;
    status = ask_model(device, &papers, 128);
    for (const char *const *encoder = od_encoder_names; *encoder && !status; encoder++) {
        od_model_config config = base;
        config.encoder = *encoder;
        status = ask_model(device, &config, 128);
    }
    for (int stem = 0; od_stem_names[stem] && !status; stem++) {
        od_model_config config = base;
        config.stem = (od_stem)stem;
        status = ask_model(device, &config, 64);
    }
    for (int head = 0; od_head_names[head] && !status; head++)
        for (int variant = 0; od_optimizer_names[variant] && !status; variant++) {
            od_model_config config = base;
            config.encoder = "cnn4";
            config.width = variant % 2 ? 16 : 6;
            config.head = (od_head_kind)head;
            config.optimizer = (od_optimizer)variant;
            config.method = variant % 2 ? OD_SIMSIAM : OD_BYOL;
            config.loss = variant / 2 ? OD_LOSS_NORMALIZED : OD_LOSS_COSINE;
            config.one_sided = variant == 1;
            status = ask_model(device, &config, 32);
        }
    return status;
}

/* Every head, and each switch that is an option of the kernel, one at a time. */
static od_status ask_theory(od_device *device) {
    od_status status = OD_OK;
    for (int i = 0; i < 8 && !status; i++) {
        od_theory_config c;
        od_theory_config_default(&c);
        c.level = OD_THEORY_SAMPLED;
        c.seeds = 64;
        c.steps = 2;
        c.head = i == 1 ? OD_THEORY_NONE : i == 2 ? OD_THEORY_FULL : OD_THEORY_OFFDIAG;
        c.draw = i == 3 ? OD_THEORY_ALL : OD_THEORY_PROJECTED;
        c.no_bn = i == 4;
        c.no_stopgrad = i == 5;
        c.detach_std = i == 6;
        c.plain_batch = i == 7;
        od_theory_state *starts = calloc((size_t)c.seeds, sizeof *starts);
        double *steps = NULL, *paths = NULL, seconds;
        size_t rows = 0;
        if (!starts)
            return od_fail(OD_ERR_MEMORY, "no memory for %d seeds", c.seeds);
        if (!(status = od_theory_check(&c)) && !(status = theory_rows(&c, &steps, &rows)) &&
            !(paths = calloc((size_t)c.seeds * rows * od_theory_columns(&c), sizeof *paths)))
            status = od_fail(OD_ERR_MEMORY, "no memory for %d paths", c.seeds);
        for (uint64_t seed = 0; seed < (uint64_t)c.seeds && !status; seed++)
            status = od_theory_start(&c, seed, &starts[seed]);
        if (!status)
            status = theory_sampled_on(device, &c, starts, steps, rows, paths, &seconds);
        free(starts);
        free(steps);
        free(paths);
    }
    return status;
}

static od_status ask(od_device *device, const char *groups) {
    od_limits limits;
    od_status status = ask_operations(device, groups);
    if (!status && od_list_holds(groups, "training"))
        status = ask_models(device);
    if (!status && od_list_holds(groups, "theory"))
        status = ask_theory(device);
    if (!status && od_list_holds(groups, "speed"))
        status = od_limits_measure(device, OD_FAMILY_AUTO, &limits);
    return status;
}

/* ---- the list ---------------------------------------------------------------------------------------------------- */

static od_wanted *find_program(od_wanted_list *list, const char *program, const char *options) {
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->programs[i].program, program) == 0 && strcmp(list->programs[i].options, options) == 0)
            return &list->programs[i];
    return NULL;
}

static od_status add_program(od_wanted_list *list, const od_device *device, const od_kernel_use *use, od_wanted **out) {
    od_wanted *longer = realloc(list->programs, (list->count + 1) * sizeof *longer);
    if (!longer)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu programs", list->count + 1);
    list->programs = longer;
    *out = &longer[list->count++];
    **out = (od_wanted){.program = strdup(use->program), .options = strdup(use->options)};
    if (!(*out)->program || !(*out)->options)
        return od_fail(OD_ERR_MEMORY, "no memory for program %s", use->program);
    return od_program_options(device, use->options, &(*out)->all_options);
}

static od_status add_kernel(od_wanted *program, const od_kernel_use *use, bool by_default) {
    od_wanted_kernel *k = NULL;
    for (size_t i = 0; i < program->count && !k; i++)
        if (strcmp(program->kernels[i].name, use->name) == 0)
            k = &program->kernels[i];
    if (!k) {
        od_wanted_kernel *longer = realloc(program->kernels, (program->count + 1) * sizeof *longer);
        char *name = longer ? strdup(use->name) : NULL;
        if (longer)
            program->kernels = longer;
        if (!name)
            return od_fail(OD_ERR_MEMORY, "no memory for kernel %s", use->name);
        k = &longer[program->count++];
        *k = (od_wanted_kernel){.name = name};
    }
    k->by_default = k->by_default || by_default;
    k->work_group = use->work_group > k->work_group ? use->work_group : k->work_group;
    k->local_bytes = use->local_bytes > k->local_bytes ? use->local_bytes : k->local_bytes;
    return OD_OK;
}

static od_status collect(od_wanted_list *list, const od_device *device) {
    od_kernel_use *uses = NULL;
    size_t count = 0;
    od_status status = od_device_kernels(device, &uses, &count);
    for (size_t i = 0; i < count && !status; i++) {
        od_wanted *program = find_program(list, uses[i].program, uses[i].options);
        if (!program)
            status = add_program(list, device, &uses[i], &program);
        if (!status && program)
            status = add_kernel(program, &uses[i], od_device_family(device) != OD_FAMILY_REF);
    }
    free(uses);
    return status;
}

static int by_program(const void *a, const void *b) {
    const od_wanted *x = a, *y = b;
    const int order = strcmp(x->program, y->program);
    return order ? order : strcmp(x->options, y->options);
}

/* The family's kernels on a device like this; and like this but with one compute unit, where small shapes take the
 * tiles of large ones; each without tuning rows and with those that apply. */
static od_status ask_family(od_wanted_list *list, const od_device_info *info, od_family family, const char *groups) {
    od_status status = OD_OK;
    for (int pass = 0; pass < 4 && !status; pass++) {
        if (family == OD_FAMILY_REF && pass)
            break; /* it has neither tiles nor rows */
        const od_device_options options = {.family = family};
        od_device_info described = *info;
        od_device *device = NULL;
        char rows[9];
        if (pass & 1)
            described.compute_units = 1;
        if ((status = od_device_plan(&described, &options, &device)))
            break;
        if (!(pass & 2))
            od_tuning_clear(device);
        else if (od_tuning_fingerprint(device, rows), strcmp(rows, "none") == 0) {
            od_device_close(device);
            continue;
        }
        if (!(status = ask(device, groups)))
            status = collect(list, device);
        od_device_close(device);
    }
    return status;
}

od_status od_offline_ask(const od_device_info *info, const char *groups, od_wanted_list *out) {
    *out = (od_wanted_list){NULL, 0};
    od_status status = ask_family(out, info, OD_FAMILY_AUTO, groups);
    if (!status)
        status = ask_family(out, info, OD_FAMILY_REF, groups);
    qsort(out->programs, out->count, sizeof *out->programs, by_program);
    return status;
}

void od_wanted_free(od_wanted_list *list) {
    for (size_t i = 0; i < list->count; i++) {
        od_wanted *p = &list->programs[i];
        for (size_t j = 0; j < p->count; j++)
            free(p->kernels[j].name);
        free(p->kernels);
        free(p->program);
        free(p->options);
        free(p->all_options);
    }
    free(list->programs);
    *list = (od_wanted_list){NULL, 0};
}
