/* The division of the batch follows the devices: speeds drift with temperature and with other work. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/crew.h"
#include "train/shares.h"

/* Members whose own times differ by less have nothing to gain that is worth other bits. */
static const double tolerance = 0.1;
static const double enough = 1; /* seconds of work to judge by; shorter epochs count together */

static void tell(od_trainer *t, const double *seconds, double spread) {
    const od_layout *l = &t->layout;
    char text[400] = "";
    json_t *times = json_array();
    for (int i = 0; i < l->count; i++) {
        size_t used = strlen(text);
        (void)snprintf(text + used, sizeof text - used, "%s%d", i ? ":" : "", l->shares[i]);
        json_array_append_new(times, json_real(seconds[i]));
    }
    od_say(t, "The devices' own times differed by %.0f %%: from here on they take %s of %d images.", 100 * spread, text,
           t->info.micro_batch);
    od_trainer_note_split(t, "times differed");
    json_t *split = json_array_get(t->record->splits, json_array_size(t->record->splits) - 1);
    json_t *line =
        json_pack("{s:s, s:I, s:O, s:O, s:o}", "event", "split", "step", (json_int_t)t->info.progress.step, "devices",
                  json_object_get(split, "devices"), "shares", json_object_get(split, "shares"), "seconds", times);
    (void)od_run_log(&t->record->run, line);
}

/* New shares of the layout by the members' rates; whether they are others than before. */
static bool divide_again(od_layout *l, const double *seconds, int n) {
    int *shares = malloc((size_t)l->count * sizeof *shares);
    bool other = false;
    if (shares) {
        od_shares_rates(l->weights, l->shares, seconds, l->count);
        other = od_shares_divide(shares, n, l->weights, l->caps, l->count) &&
                memcmp(shares, l->shares, (size_t)l->count * sizeof *shares) != 0;
    }
    if (other)
        memcpy(l->shares, shares, (size_t)l->count * sizeof *shares);
    free(shares);
    return other;
}

static double longest_of(const double *seconds, int count) {
    double longest = 0;
    for (int i = 0; i < count; i++)
        longest = seconds[i] > longest ? seconds[i] : longest;
    return longest;
}

/* Seconds of this member's own work on a step. For tests, OFFDIAG_IMAGE_SECONDS="0.1:0.2" says what an image takes each
 * member, in place of the clock. */
static double own_seconds(const od_trainer *t) {
    const char *given = getenv("OFFDIAG_IMAGE_SECONDS");
    const od_layout *l = &t->layout;
    double *image = given ? malloc((size_t)l->count * sizeof *image) : NULL;
    double seconds = t->busy / (double)t->timed;
    if (image && od_shares_parse(image, given, l->count) == OD_OK)
        seconds = image[l->index] * l->shares[l->index];
    free(image);
    return seconds;
}

od_status od_trainer_rebalance(od_trainer *t) {
    od_layout *l = &t->layout;
    od_status status = OD_OK;
    if (!t->member || l->fixed || !t->info.config.rebalance || !t->timed)
        return OD_OK;
    double *seconds = calloc((size_t)l->count, sizeof *seconds), full = 0;
    if (!seconds)
        return od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
    if ((status = od_layout_exchange(l, t->member, own_seconds(t), seconds)) ||
        longest_of(seconds, l->count) * (double)t->timed < enough)
        goto out;
    t->busy = 0;
    t->timed = 0;
    const double spread = od_shares_spread(seconds, l->count);
    if (spread <= tolerance || !divide_again(l, seconds, t->info.micro_batch))
        goto out;
    full = od_trainer_share(t) > t->capacity;
    if ((status = od_member_sum(t->member, &full, 1)) || (status = full > 0 ? od_replica_refit(t) : od_trainer_seek(t)))
        goto out;
    if (t->record) {
        tell(t, seconds, spread);
        status = od_trainer_write_config(t);
    }
out:
    free(seconds);
    return status;
}
