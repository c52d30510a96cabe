/* Members of a process meet at a lock; the last to come does what is to be done for all, in MPI too. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/grow.h"
#include "dist/world.h"

enum { MESSAGE = 600 };

/* A part of the background sums: as many arrays as members, then their sum in the first. */
typedef struct part {
    size_t at, n;
    int arrived;
    float *stand_in; /* zeros of a process all of whose members failed */
} part;

/* Meetings of ranks begin with a message of one size whatever they are about, so that a process whose members have all
 * failed can take part: counts, then the first EAGER values. What is longer follows when nobody failed. */
enum { FAILURES, LIVE, PARTS, HEADER, EAGER = 1024 }; /* LIVE: ranks with members that are well; PARTS: given to them */

struct od_member {
    od_team *team;
    int local;      /* index in the process */
    int parts;      /* given in this step */
    float *base;    /* where the parts lie */
    double *values; /* at the present meeting */
    bool failing;
    double waited;
};

struct od_team {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int rank, ranks, local, first, count; /* first: index of this process's first member */
    int created;                          /* local ones, at first */
    int *counts;                          /* (ranks) members */
    od_member *members, **here;           /* as created; (local) those that are in the team now */

    int arrived;
    unsigned long generation; /* of meetings */
    size_t n;                 /* values of the present meeting */
    bool mismatch;
    double *message, *total; /* (HEADER + values), and its values: (n) */
    size_t capacity;         /* of values */
    double failures;

    part *parts;
    size_t part_count, part_capacity;
    size_t *part_sizes; /* of this step, and of an earlier one beyond them */
    size_t part_size_count;

    char *failed;                      /* (count) after od_member_agree */
    char said[MESSAGE], told[MESSAGE]; /* by the first here to fail; by the first of all */
    char *gathered;
    void *shared;
    size_t shared_bytes;
};

/* ---- life ------------------------------------------------------------------------------------------------------- */

od_status od_team_create(od_team **out, int members) {
    od_team *team = calloc(1, sizeof *team);
    if (!team || members < 1) {
        free(team);
        return od_fail(OD_ERR_ARGUMENT, "a team of %d members", members);
    }
    team->rank = od_world_rank();
    team->ranks = od_world_ranks();
    team->local = team->created = members;
    team->counts = calloc((size_t)team->ranks, sizeof *team->counts);
    team->members = calloc((size_t)members, sizeof *team->members);
    team->here = calloc((size_t)members, sizeof *team->here); /* NOLINT(bugprone-sizeof-expression): of pointers */
    if (team->counts)
        world_counts(team->counts, members);
    for (int r = 0; r < team->ranks && team->counts; r++) {
        team->first += r < team->rank ? team->counts[r] : 0;
        team->count += team->counts[r];
    }
    team->failed = calloc((size_t)team->count + 1, 1);
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->changed, NULL);
    *out = team;
    if (!team->counts || !team->members || !team->here || !team->failed) {
        od_team_destroy(team);
        *out = NULL;
        return od_fail(OD_ERR_MEMORY, "no memory for a team of %d members", members);
    }
    for (int i = 0; i < members; i++) {
        team->members[i] = (od_member){.team = team, .local = i};
        team->here[i] = &team->members[i];
    }
    return OD_OK;
}

static void drop_parts(od_team *team) {
    for (size_t i = 0; i < team->part_count; i++)
        free(team->parts[i].stand_in);
    team->part_count = 0;
}

void od_team_destroy(od_team *team) {
    if (!team)
        return;
    world_settle();
    drop_parts(team);
    pthread_mutex_destroy(&team->lock);
    pthread_cond_destroy(&team->changed);
    free(team->counts);
    free(team->members);
    free(team->here);
    free(team->message);
    free(team->parts);
    free(team->part_sizes);
    free(team->failed);
    free(team->gathered);
    free(team);
}

int od_team_members(const od_team *team) {
    return team->created;
}

od_member *od_team_member(od_team *team, int i) {
    return &team->members[i];
}

int od_member_index(const od_member *m) {
    return m->team->first + m->local;
}

int od_member_count(const od_member *m) {
    return m->team->count;
}

bool od_member_leads(const od_member *m) {
    return od_member_index(m) == 0;
}

bool od_member_leads_process(const od_member *m) {
    return m->local == 0;
}

/* ---- background sums -------------------------------------------------------------------------------------------- */

/* All members have given part i, or those that have not failed: start its sum. */
static void start_part(od_team *team, size_t i) {
    part *p = &team->parts[i];
    float *sum = NULL;
    for (int k = 0; k < team->local; k++) {
        const od_member *m = team->here[k];
        if (m->parts <= (int)i)
            continue;
        if (!sum) {
            sum = m->base + p->at;
            continue;
        }
        const float *restrict other = m->base + p->at;
        for (size_t e = 0; e < p->n; e++)
            sum[e] += other[e];
    }
    if (!sum)
        sum = p->stand_in;
    world_start_sum(sum, p->n);
}

od_status od_member_reduce(od_member *m, float *base, size_t at, size_t n) {
    od_team *team = m->team;
    const double began = od_now();
    od_status status = OD_OK;
    pthread_mutex_lock(&team->lock);
    const size_t i = (size_t)m->parts;
    if (i == team->part_count) { /* the first here to give it */
        part *grown = od_grow(team->parts, team->part_count, &team->part_capacity, sizeof *grown);
        if (grown) {
            team->parts = grown;
            team->parts[team->part_count++] = (part){.at = at, .n = n};
        } else {
            status = od_fail(OD_ERR_MEMORY, "no memory for a gradient bucket");
        }
    }
    if (!status && team->parts && (team->parts[i].at != at || team->parts[i].n != n))
        status = od_fail(OD_ERR_ARGUMENT, "member %d reduces %zu values at %zu where others reduce %zu at %zu",
                         od_member_index(m), n, at, team->parts[i].n, team->parts[i].at);
    if (!status && team->parts) {
        m->base = base;
        m->parts++;
        if (++team->parts[i].arrived == team->local)
            start_part(team, i);
    }
    pthread_mutex_unlock(&team->lock);
    m->waited += od_now() - began;
    return status;
}

/* Members failed before they gave their parts: the sums go on without theirs, so that all ranks start as many. */
static void complete_parts(od_team *team) {
    for (size_t i = 0; i < team->part_count; i++)
        if (team->parts[i].arrived < team->local) {
            start_part(team, i);
            team->parts[i].arrived = team->local;
        }
}

static bool all_failing(const od_team *team) {
    for (int k = 0; k < team->local; k++)
        if (!team->here[k]->failing)
            return false;
    return true;
}

/* Other ranks wait for what can't be done. */
static _Noreturn void give_up(const char *message) {
    (void)fprintf(stderr, "offdiag: %s\n", message);
    od_world_abort(1);
    abort();
}

/* The parts' sizes, for a later step in which nobody here is left to tell them. */
static void remember_parts(od_team *team) {
    if (team->part_count > team->part_size_count) {
        size_t *sizes = realloc(team->part_sizes, team->part_count * sizeof *sizes);
        if (!sizes)
            give_up("no memory for the sizes of gradient buckets");
        team->part_sizes = sizes;
        team->part_size_count = team->part_count;
    }
    for (size_t i = 0; i < team->part_count; i++)
        team->part_sizes[i] = team->parts[i].n;
}

/* Nobody here is left to give the parts that other ranks sum: zeros. */
static void give_zeros(od_team *team, size_t count) {
    for (size_t i = team->part_count; i < count; i++) {
        part *grown = od_grow(team->parts, team->part_count, &team->part_capacity, sizeof *grown);
        float *zeros = i < team->part_size_count ? calloc(team->part_sizes[i], sizeof *zeros) : NULL;
        if (!grown || !zeros)
            give_up(team->said);
        (team->parts = grown)[team->part_count++] =
            (part){.n = team->part_sizes[i], .arrived = team->local, .stand_in = zeros};
        start_part(team, i);
    }
}

/* ---- meetings --------------------------------------------------------------------------------------------------- */

static void make_message(od_team *team, size_t values) {
    if (values > team->capacity || !team->message) {
        free(team->message);
        team->capacity = values;
        team->message = malloc((HEADER + values) * sizeof *team->message);
        if (!team->message)
            give_up("no memory for a sum over devices");
        team->total = team->message + HEADER;
    }
    memset(team->message, 0, (HEADER + values) * sizeof *team->message);
}

/* For all members: their values' sum in member order, and how many failed. */
static void add_up(od_team *team) {
    const bool live = !all_failing(team);
    const size_t eager = team->ranks > 1 ? EAGER : 0;
    double *message;
    make_message(team, team->n > eager ? team->n : eager);
    message = team->message;
    complete_parts(team);
    if (live) {
        remember_parts(team);
        message[LIVE] = 1;
        message[PARTS] = (double)team->part_count;
    }
    for (int k = 0; k < team->local; k++) {
        const od_member *m = team->here[k];
        if (m->failing || team->mismatch)
            message[FAILURES] += 1;
        else
            for (size_t i = 0; i < team->n; i++)
                team->total[i] += m->values[i];
    }
    world_sum(message, HEADER + eager);
    team->failures = message[FAILURES];
    if (!live && message[LIVE] > 0)
        give_zeros(team, (size_t)(message[PARTS] / message[LIVE]));
    if (team->failures == 0 && team->n > eager)
        world_sum(team->total + eager, team->n - eager);
}

/* What the last to come does beside. */
typedef void (*duty)(od_team *team);

/* Returns how many members failed. */
static double meet(od_member *m, double *values, size_t n, bool failing, duty then) {
    od_team *team = m->team;
    const double began = od_now();
    pthread_mutex_lock(&team->lock);
    m->values = values;
    m->failing = failing;
    if (!failing) {
        team->mismatch = team->mismatch || (team->n != SIZE_MAX && team->arrived > 0 && team->n != n);
        team->n = n;
    } else if (team->arrived == 0) {
        team->n = SIZE_MAX; /* not known yet */
    }
    if (++team->arrived == team->local) {
        team->n = team->n == SIZE_MAX ? 0 : team->n;
        add_up(team);
        if (then && team->failures == 0) /* where all of a process failed it does not know what was to follow */
            then(team);
        team->arrived = 0;
        team->mismatch = false;
        team->generation++;
        pthread_cond_broadcast(&team->changed);
    } else {
        for (const unsigned long mine = team->generation; mine == team->generation;)
            pthread_cond_wait(&team->changed, &team->lock);
    }
    const double failures = team->failures;
    if (!failing && failures == 0 && n)
        memcpy(values, team->total, n * sizeof *values);
    m->waited += od_now() - began;
    pthread_mutex_unlock(&team->lock);
    return failures;
}

static od_status peer(void) {
    return od_fail(OD_ERR_PEER, "another device failed");
}

od_status od_member_sum(od_member *m, double *values, size_t n) {
    return meet(m, values, n, false, NULL) > 0 ? peer() : OD_OK;
}

static void finish_parts(od_team *team) {
    world_finish_sums();
    drop_parts(team);
}

od_status od_member_reduced(od_member *m, const float **total) {
    const double failures = meet(m, NULL, 0, false, finish_parts);
    m->parts = 0;
    *total = m->team->here[0]->base;
    return failures > 0 ? peer() : OD_OK;
}

/* ---- failure ---------------------------------------------------------------------------------------------------- */

static int first_failed(const od_team *team) {
    for (int i = 0; i < team->count; i++)
        if (team->failed[i])
            return i;
    return -1;
}

/* What the first member that failed said, to all ranks. */
static void tell(od_team *team) {
    int from = 0, before = 0;
    for (int i = 0; i < team->count; i++)
        team->failed[i] = team->total[i] > 0;
    finish_parts(team);
    const int who = first_failed(team);
    while (from + 1 < team->ranks && who >= before + team->counts[from])
        before += team->counts[from++];
    memcpy(team->told, team->said, sizeof team->told);
    team->said[0] = '\0';
    world_share(team->told, sizeof team->told, from);
}

od_status od_member_agree(od_member *m, od_status status) {
    od_team *team = m->team;
    const bool own = status != OD_OK && status != OD_ERR_PEER;
    char message[MESSAGE] = "";
    if (own) {
        (void)snprintf(message, sizeof message, "%s", od_error_message());
        pthread_mutex_lock(&team->lock);
        if (!team->said[0])
            memcpy(team->said, message, sizeof message);
        pthread_mutex_unlock(&team->lock);
    }
    if (status != OD_ERR_PEER && meet(m, NULL, 0, own, NULL) == 0)
        return OD_OK;

    /* all are here now: who was it? */
    double *flags = calloc((size_t)team->count, sizeof *flags);
    if (!flags)
        give_up("no memory for a list of devices");
    flags[od_member_index(m)] = own;
    meet(m, flags, (size_t)team->count, false, tell);
    free(flags);
    m->parts = 0;
    return own ? od_fail(status, "%s", message) : od_fail(OD_ERR_PEER, "%s", team->told);
}

bool od_member_failed(const od_member *m, int index) {
    return m->team->failed[index] != 0;
}

/* team->total (count): whether each member stays. */
static void rearrange(od_team *team) {
    const int before = team->first;
    int local = 0, ranks = 0, count = 0;
    for (int r = 0, i = 0; r < team->ranks; r++) {
        int stay = 0;
        for (int k = 0; k < team->counts[r]; k++, i++)
            stay += team->total[i] > 0;
        if (r == team->rank)
            team->first = count;
        count += stay;
        if (stay)
            team->counts[ranks++] = stay; /* ranks <= r */
    }
    for (int k = 0; k < team->local; k++)
        if (team->total[before + k] > 0) {
            team->here[local] = team->here[k];
            team->here[local]->local = local;
            local++;
        }
    world_split(local > 0);
    team->local = local;
    team->count = count;
    team->ranks = ranks;
    team->rank = od_world_rank();
}

od_status od_member_stay(od_member *m, bool stays) {
    double *flags = calloc((size_t)m->team->count, sizeof *flags);
    if (!flags)
        give_up("no memory for a list of devices");
    flags[od_member_index(m)] = stays;
    const double failures = meet(m, flags, (size_t)m->team->count, false, rearrange);
    free(flags);
    return failures > 0 ? peer() : OD_OK;
}

/* ---- data ------------------------------------------------------------------------------------------------------- */

/* team->total[0]: bytes of all. */
static void make_room(od_team *team) {
    const size_t bytes = (size_t)team->total[0];
    free(team->gathered);
    team->gathered = malloc(bytes ? bytes : 1);
    if (!team->gathered)
        give_up("no memory for what all devices computed");
}

/* team->total (count): bytes that each member gives. */
static void exchange(od_team *team) {
    size_t *bytes = calloc((size_t)team->ranks, sizeof *bytes);
    if (!bytes)
        give_up("no memory for a list of ranks");
    for (int r = 0, i = 0; r < team->ranks; r++)
        for (int k = 0; k < team->counts[r]; k++, i++)
            bytes[r] += (size_t)team->total[i];
    if (world_gather(team->gathered, bytes))
        give_up(od_error_message());
    free(bytes);
}

/* team->gathered (total): own (bytes) of this member at `first`, and the others'. */
static od_status gather(od_member *m, const void *own, size_t first, size_t bytes, size_t total) {
    od_team *team = m->team;
    double *sizes = calloc((size_t)team->count, sizeof *sizes), sum = (double)bytes;
    if (!sizes)
        give_up("no memory for a list of devices");
    od_status status = OD_OK;
    sizes[od_member_index(m)] = (double)bytes;
    if (meet(m, &sum, 1, false, make_room) > 0)
        status = peer();
    else if ((size_t)sum != total || first + bytes > total)
        status = od_fail(OD_ERR_ARGUMENT, "members give %.0f bytes of %zu", sum, total);
    if (!status && bytes)
        memcpy(team->gathered + first, own, bytes);
    if (!status && meet(m, sizes, (size_t)team->count, false, exchange) > 0)
        status = peer();
    free(sizes);
    return status;
}

od_status od_member_gather(od_member *m, const float **all, const float *own, size_t first, size_t n, size_t total) {
    od_status status = gather(m, own, first * sizeof *own, n * sizeof *own, total * sizeof *own);
    *all = (const float *)(const void *)m->team->gathered;
    return status;
}

od_status od_member_exchange(od_member *m, void *all, const void *own, size_t bytes) {
    const size_t count = (size_t)m->team->count;
    od_status status = gather(m, own, (size_t)od_member_index(m) * bytes, bytes, count * bytes);
    if (!status)
        memcpy(all, m->team->gathered, count * bytes);
    return status;
}

static void spread(od_team *team) {
    world_share(team->shared, team->shared_bytes, 0);
}

od_status od_member_share(od_member *m, void *data, size_t bytes) {
    od_team *team = m->team;
    if (m->local == 0) {
        pthread_mutex_lock(&team->lock);
        team->shared = data;
        team->shared_bytes = bytes;
        pthread_mutex_unlock(&team->lock);
    }
    if (meet(m, NULL, 0, false, spread) > 0)
        return peer();
    if (m->local > 0)
        memcpy(data, team->shared, bytes);
    return meet(m, NULL, 0, false, NULL) > 0 ? peer() : OD_OK; /* nobody's data changes before all have it */
}

double od_member_waited(const od_member *m) {
    return m->waited;
}

void od_member_reset_waited(od_member *m) {
    m->waited = 0;
}
