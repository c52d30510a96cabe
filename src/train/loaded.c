#include "train/loaded.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "train/config.h"
#include "train/crew.h"

enum { EVAL_ROWS = 64 }; /* images of a training pass that the model is built for: evaluation works in twice as many */

/* A member's part, and what it shares with the others of the process. */
typedef struct part {
    const od_loading *loading;
    char spec[24];
    od_dataset **dataset;
    od_loaded loaded;
} part;

/* Between parts of the work: whether all members are well. */
static od_status settle(const od_loaded *l, od_status status) {
    od_failure first;
    return l->member ? od_member_settle(l->member, status, &first) : status;
}

static od_status open_model(part *p) {
    od_loaded *l = &p->loaded;
    od_safetensors *file = NULL;
    char *path = NULL;
    od_model_config config;
    const od_device_options options = {.family = p->loading->family, .processes = (unsigned)od_world_here()};
    od_status status = OD_OK;
    if ((status = od_checkpoint_path(p->loading->path, &path)) || (status = od_checkpoint_open(path, &file, &l->info)))
        goto out;
    od_train_model_config(&config, &l->info.config, l->info.image_side);
    if ((status = od_device_open(p->spec, &options, &l->device)) ||
        (status = od_model_create(l->device, &config, EVAL_ROWS, &l->model)))
        goto out;
    status = od_checkpoint_load(file, path, l->model, NULL, false);
out:
    od_safetensors_close(file);
    free(path);
    return status;
}

/* The images that the run had. */
static od_status open_dataset(const part *p, od_dataset **out) {
    const od_checkpoint_info *info = &p->loaded.info;
    const char *data = p->loading->data;
    od_status status = OD_OK;
    if ((status = od_dataset_open(info->config.dataset, data[0] ? data : info->data_dir,
                                  od_train_image_side(&info->config), out)) ||
        (status = od_dataset_downsample(*out, info->config.downsample)))
        return status;
    od_dataset *d = *out;
    if (d->h != info->image_side || d->c != info->channels || d->classes != info->classes)
        return od_fail(OD_ERR_FORMAT, "%s: trained on %dx%d images with %d channels; %s has %dx%d with %d",
                       p->loading->path, info->image_side, info->image_side, info->channels, d->dir, d->h, d->w, d->c);
    od_split_limit(&d->train, (size_t)info->config.limit);
    return OD_OK;
}

/* Shares by how fast each one makes features, all at the same time as later. */
static od_status weigh(od_loaded *l) {
    const int n = l->dataset->test.n < 2 * EVAL_ROWS ? l->dataset->test.n : 2 * EVAL_ROWS;
    double *rates = calloc((size_t)l->layout.count, sizeof *rates), seconds = 1, most = 0;
    od_status status = rates ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
    status = settle(l, status);
    for (int i = 0; i < 2 && !status && n; i++) { /* the first time builds programs */
        od_span features = OD_NO_SPAN;
        const double began = od_now();
        if (!(status = od_split_features(l->model, &l->views, &l->dataset->test, 0, n, &features)))
            status = od_device_finish(l->device);
        od_buffer_release(features.buffer);
        seconds = od_now() - began;
        status = settle(l, status);
    }
    if (!status && !(status = od_layout_exchange(&l->layout, l->member, 1 / seconds, rates))) {
        for (int i = 0; i < l->layout.count; i++)
            most = fmax(most, rates[i]);
        for (int i = 0; i < l->layout.count; i++)
            l->layout.shares[i] = 1 + (int)(1e4 * rates[i] / most);
    }
    free(rates);
    return status;
}

static od_status open_all(part *p) {
    od_loaded *l = &p->loaded;
    od_augment_policy policies[2];
    od_status status = settle(l, open_model(p));
    if (status)
        return status;
    status = !l->member || od_member_leads_process(l->member) ? open_dataset(p, p->dataset) : OD_OK;
    if ((status = settle(l, status)))
        return status;
    l->dataset = *p->dataset;
    if ((status = settle(l, p->loading->check(l, p->loading->context))))
        return status;
    const od_checkpoint_info *info = &l->info;
    od_augment_policies_named(policies, info->config.augment, info->config.crop_min, info->mean, info->std);
    status = od_views_create(&l->views, l->device, l->dataset, policies, info->image_side, 2 * EVAL_ROWS, EVAL_ROWS,
                             info->config.seed);
    if ((status = settle(l, status)) ||
        (status = od_layout_create(&l->layout, l->member, od_device_get_info(l->device))))
        return status;
    return l->member ? weigh(l) : OD_OK;
}

static od_status act(od_member *member, void *context) {
    part *p = context;
    p->loaded.member = member;
    od_status status = open_all(p);
    if (status)
        return status; /* all know */
    status = p->loading->body(&p->loaded, p->loading->context);
    return member ? od_member_agree(member, status) : status;
}

static void close_part(part *p) {
    od_loaded *l = &p->loaded;
    od_views_destroy(&l->views);
    od_model_destroy(l->model);
    od_device_close(l->device);
    od_layout_destroy(&l->layout);
}

od_status od_loaded_run(const od_loading *loading) {
    char ids[OD_CREW_MOST][24];
    int count = 0;
    part *parts = NULL;
    od_team *team = NULL;
    od_dataset *dataset = NULL;
    od_status status = od_crew_devices(ids, &count, loading->devices);
    if (!status && !(parts = calloc((size_t)count, sizeof *parts)))
        status = od_fail(OD_ERR_MEMORY, "no memory for %d devices", count);
    for (int i = 0; i < count && !status; i++) {
        parts[i] = (part){.loading = loading, .dataset = &dataset};
        memcpy(parts[i].spec, ids[i], sizeof parts[i].spec);
    }
    if (!status && (count > 1 || od_world_ranks() > 1)) {
        if (!(status = od_team_create(&team, count)))
            status = od_team_run(team, act, parts, sizeof *parts);
    } else if (!status) {
        status = act(NULL, &parts[0]);
    }
    for (int i = 0; i < count && parts; i++)
        close_part(&parts[i]);
    od_dataset_close(dataset);
    od_team_destroy(team);
    free(parts);
    return status;
}

/* ---- features --------------------------------------------------------------------------------------------------- */

/* Of images first .. first+n-1 of a split, to the host. */
static od_status read_features(od_loaded *l, const od_split *split, int first, int n, float *out) {
    od_span features = OD_NO_SPAN;
    if (n <= 0)
        return OD_OK;
    od_status status = od_split_features(l->model, &l->views, split, first, n, &features);
    if (!status)
        status = od_span_read(features, out, (size_t)n * od_model_feature_dim(l->model));
    od_buffer_release(features.buffer);
    return status;
}

static int clamp(int x, int most) {
    return x < 0 ? 0 : x > most ? most : x;
}

od_status od_loaded_features(od_loaded *l, const float **all, float **own, const od_split *one, int n,
                             const od_split *other, int m) {
    const size_t d = (size_t)od_model_feature_dim(l->model), total = (size_t)n + (size_t)m;
    int first = 0, count = 0;
    od_status status = od_layout_range(&l->layout, n + m, &first, &count);
    if (status)
        return status;
    /* the range of all images that is this member's, in each of the splits */
    const int at = clamp(first, n), until = clamp(first + count, n), there = clamp(first - n, m);
    *own = malloc(((size_t)count * d + 1) * sizeof **own);
    if (!*own)
        status = od_fail(OD_ERR_MEMORY, "no memory for %d features", count);
    if (!status && !(status = read_features(l, one, at, until - at, *own)) && other)
        status = read_features(l, other, there, clamp(first + count - n, m) - there, *own + (size_t)(until - at) * d);
    *all = *own;
    if (status || !l->member)
        return status;
    return od_member_gather(l->member, all, *own, (size_t)first * d, (size_t)count * d, total * d);
}
