/* A thread for each member. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "dist/team.h"

enum { MESSAGE = 2000 };

typedef struct gate { /* where threads wait until all are there */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum { SHUT, OPEN, LOST } state;
} gate;

typedef struct actor {
    pthread_t thread;
    gate *gate;
    od_act act;
    od_member *member;
    void *context;
    od_status status;
    char message[MESSAGE];
} actor;

static void *run(void *argument) {
    actor *a = argument;
    pthread_mutex_lock(&a->gate->lock);
    while (a->gate->state == SHUT)
        pthread_cond_wait(&a->gate->changed, &a->gate->lock);
    const bool open = a->gate->state == OPEN;
    pthread_mutex_unlock(&a->gate->lock);
    if (open && (a->status = a->act(a->member, a->context)))
        (void)snprintf(a->message, sizeof a->message, "%s", od_error_message());
    return NULL;
}

static void set(gate *g, int state) {
    pthread_mutex_lock(&g->lock);
    g->state = state;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static od_status outcome(const actor *actors, int count) {
    const actor *first = NULL;
    for (int i = 0; i < count; i++)
        if (actors[i].status && (!first || (first->status == OD_ERR_PEER && actors[i].status != OD_ERR_PEER)))
            first = &actors[i];
    return first ? od_fail(first->status, "%s", first->message) : OD_OK;
}

od_status od_team_run(od_team *team, od_act act, void *contexts, size_t size) {
    const int count = od_team_members(team);
    gate g = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    actor *actors = calloc((size_t)count, sizeof *actors);
    int started = 0;
    if (!actors)
        return od_fail(OD_ERR_MEMORY, "no memory for %d threads", count);
    for (; started < count; started++) {
        actor *a = &actors[started];
        *a = (actor){.gate = &g,
                     .act = act,
                     .member = od_team_member(team, started),
                     .context = (char *)contexts + started * size};
        if (pthread_create(&a->thread, NULL, run, a))
            break;
    }
    set(&g, started == count ? OPEN : LOST);
    for (int i = 0; i < started; i++)
        pthread_join(actors[i].thread, NULL);
    od_status status = started == count ? outcome(actors, count)
                                        : od_fail(OD_ERR_MEMORY, "no thread for device %d of %d", started + 1, count);
    free(actors);
    return status;
}
