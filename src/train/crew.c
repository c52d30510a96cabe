#include "train/crew.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/layout.h"

/* ---- who is in it ----------------------------------------------------------------------------------------------- */

od_status od_crew_devices(char ids[][24], int *count, const char *list) {
    od_device_info *infos = NULL;
    size_t found = 0, indices[OD_CREW_MOST], selected = 0;
    od_status status = od_device_list(&infos, &found);
    if (!status)
        status = od_devices_select(infos, found, list, indices, OD_CREW_MOST, &selected, NULL);
    for (size_t i = 0; i < selected && !status; i++)
        memcpy(ids[i], infos[indices[i]].id, sizeof ids[i]);
    *count = status ? 0 : (int)selected;
    free(infos);
    return status;
}

od_status od_crew_create(od_crew *crew, const od_train_config *config, od_train_result *result) {
    char ids[OD_CREW_MOST][24];
    *crew = (od_crew){.record = {.run.lock = -1, .result = result, .splits = json_array()}};
    od_progress_begin(&crew->record.progress, config->quiet, 0, 1, config->batch);
    od_status status = od_crew_devices(ids, &crew->count, config->device);
    if (status)
        return status;
    crew->trainers = calloc((size_t)crew->count, sizeof *crew->trainers);
    if (!crew->trainers || !crew->record.splits)
        return od_fail(OD_ERR_MEMORY, "no memory for %d devices", crew->count);
    if ((crew->count > 1 || od_world_ranks() > 1) && (status = od_team_create(&crew->team, crew->count)))
        return status;
    for (int i = 0; i < crew->count; i++) {
        od_trainer *t = &crew->trainers[i];
        *t = (od_trainer){.info = {.config = *config, .progress = {.knn_before = NAN}},
                          .crew = crew,
                          .member = crew->team ? od_team_member(crew->team, i) : NULL};
        memcpy(t->spec, ids[i], sizeof t->spec);
        if (!t->member || od_member_leads(t->member))
            t->record = &crew->record;
    }
    return OD_OK;
}

void od_crew_destroy(od_crew *crew) {
    for (int i = 0; i < crew->count && crew->trainers; i++)
        od_trainer_close(&crew->trainers[i]);
    free(crew->trainers);
    od_dataset_close(crew->dataset);
    od_record_close(&crew->record);
    od_team_destroy(crew->team);
    *crew = (od_crew){.record.run.lock = -1};
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static od_status act(od_member *member, void *context) {
    od_trainer *t = context;
    (void)member;
    od_status status = t->crew->body(t);
    return t->left ? OD_OK : status;
}

od_status od_crew_run(od_crew *crew, od_status (*body)(od_trainer *t)) {
    if (!crew->team)
        return body(&crew->trainers[0]);
    crew->body = body;
    return od_team_run(crew->team, act, crew->trainers, sizeof *crew->trainers);
}

/* ---- agreement -------------------------------------------------------------------------------------------------- */

/* The device, before what it said. */
static void name_device(const od_trainer *t, od_status status) {
    if (t->layout.places && t->layout.count > 1)
        (void)od_fail_in(status, "device %s: ", od_layout_name(&t->layout, t->layout.index));
    else
        (void)od_fail_in(status, "device %s: ", t->spec);
}

bool od_trainer_device_failed(od_status status) {
    return status == OD_ERR_DEVICE || status == OD_ERR_DEVICE_MEMORY || status == OD_ERR_BUILD;
}

od_status od_trainer_agree(od_trainer *t, od_status status) {
    if (!t->member)
        return status;
    if (od_trainer_device_failed(status))
        name_device(t, status);
    const od_status agreed = od_member_agree(t->member, status);
    if (!agreed)
        return OD_OK;
    t->agreed = true;
    (void)snprintf(t->message, sizeof t->message, "%s", od_error_message());
    const int count = od_member_count(t->member), index = od_member_index(t->member);
    int first = 0;
    while (first < count - 1 && !od_member_failed(t->member, first))
        first++;
    double code = first == index ? (double)agreed : 0;
    t->failure = od_member_sum(t->member, &code, 1) ? agreed : (od_status)code;
    const bool usage = t->failure == OD_ERR_USAGE && agreed == OD_ERR_PEER; /* exit codes are the same in all ranks */
    return od_fail(usage ? OD_ERR_USAGE : agreed, "%s", t->message);
}

od_status od_trainer_settle(od_trainer *t, od_status status) {
    od_failure first = {0};
    if (!t->member || status == OD_ERR_PEER)
        return status;
    if (od_trainer_device_failed(status))
        name_device(t, status);
    status = od_member_settle(t->member, status, &first);
    if (first.status) {
        t->agreed = true;
        t->failure = first.status;
        memcpy(t->message, first.message, sizeof t->message);
    }
    return status;
}

od_status od_trainer_stay(od_trainer *t, bool stays) {
    const int count = t->layout.count;
    double *flags = calloc((size_t)count, sizeof *flags);
    bool *staying = calloc((size_t)count, sizeof *staying);
    od_status status = OD_OK;
    if (!flags || !staying)
        status = od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
    else if (!(status = od_layout_exchange(&t->layout, t->member, stays, flags)) &&
             !(status = od_member_stay(t->member, stays))) {
        for (int i = 0; i < count; i++)
            staying[i] = flags[i] > 0;
        od_layout_keep(&t->layout, staying);
        t->left = !stays;
        if (!stays || t->layout.count == 1)
            t->member = NULL; /* out of it, or alone */
        t->record = !stays || (t->member && !od_member_leads(t->member)) ? NULL : &t->crew->record;
    }
    free(flags);
    free(staying);
    return status;
}
