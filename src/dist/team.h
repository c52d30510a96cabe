/* Several members train one model: each is a thread with a device and a replica of its own. Members of one process
 * share memory; processes (MPI ranks) talk through MPI where the build has it and the program was started under it.
 *
 * Every member makes the same calls in the same order. Sums are taken in the order of members, so that results are the
 * same bits in every member and in every run with the same team.
 *
 * Failure: a member that fails calls od_member_agree with its status. It then takes part, with zeros, in what the
 * others are doing; their od_member_sum returns OD_ERR_PEER, they call od_member_agree too, and there all learn who
 * failed. The team stays usable: those that failed leave it (od_member_stay), or all end. */
#ifndef DIST_TEAM_H
#define DIST_TEAM_H

#include <stdbool.h>
#include <stddef.h>

#include "offdiag/status.h"

/* ---- processes -------------------------------------------------------------------------------------------------- */

/* Start MPI when this process was started by its launcher (mpirun, srun). Without MPI in the build, but under a
 * launcher of several processes: OD_ERR_UNSUPPORTED. Call once, before threads. */
od_status od_world_begin(void);
/* At the program's end, with its exit code: waits for the other ranks; but one that failed where they don't know of it,
 * before there was a team, ends them all. */
void od_world_end(int code);
int od_world_rank(void);  /* 0 without MPI */
int od_world_ranks(void); /* 1 without MPI */
int od_world_here(void);  /* of them on this machine */
/* End all processes at once with this exit code; does not return under MPI, does nothing without. */
void od_world_abort(int code);
const char *od_world_version(void); /* the MPI library's name and version; "" without */

/* ---- the team --------------------------------------------------------------------------------------------------- */

typedef struct od_team od_team;
typedef struct od_member od_member;

/* `members` of this process (at least 1; ranks may differ). Collective over ranks. */
od_status od_team_create(od_team **out, int members);
void od_team_destroy(od_team *team);             /* NULL is fine; when no member uses it any more */
od_member *od_team_member(od_team *team, int i); /* i-th of this process; used by one thread at a time */

int od_team_members(const od_team *team); /* of this process, as created */

/* Run `act` for each member of this process with its context (the i-th is i * size bytes on), in threads of their own:
 * all, or none where a thread can't be had. Waits for them. The status and message of the first that failed by itself.
 */
typedef od_status (*od_act)(od_member *m, void *context);
od_status od_team_run(od_team *team, od_act act, void *contexts, size_t size);

int od_member_index(const od_member *m);  /* over all processes, in the order of ranks */
int od_member_count(const od_member *m);  /* of the whole team */
bool od_member_leads(const od_member *m); /* index 0: it writes files and talks to the user */
bool od_member_leads_process(const od_member *m);

/* ---- what members do together ----------------------------------------------------------------------------------- */

/* values (n): the sum over all members. Waits for them. OD_ERR_PEER: another member failed, values are undefined. */
od_status od_member_sum(od_member *m, double *values, size_t n);

/* Whether all members are well. With OD_OK: waits for all, OD_OK if they are. With another status: tells the others.
 * When anyone failed every member gets an error: one that failed its own status, the others OD_ERR_PEER with a message
 * that names the first that failed and says what it said. */
od_status od_member_agree(od_member *m, od_status status);
/* After that: whether member `index` was among those that failed. */
bool od_member_failed(const od_member *m, int index);

/* The same between steps, where every member comes with its own status: nobody is taken by surprise, so all end in good
 * order even where a rank has no member that is well. first->status is OD_OK or the first failure by index, the same in
 * all members, which get it as their status where it is their own or a mistake in the options (exit codes are the same
 * in all ranks), and OD_ERR_PEER otherwise. */
enum { OD_FAILURE_MESSAGE = 700 };
typedef struct od_failure {
    od_status status;
    char message[OD_FAILURE_MESSAGE];
} od_failure;
od_status od_member_settle(od_member *m, od_status status, od_failure *first);

/* After od_member_agree, perhaps: the team goes on with those members that stay, in the order that they had; one that
 * does not may not use it any more, and a rank that loses all of its members is none any more. Waits for all. */
od_status od_member_stay(od_member *m, bool stays);

/* Sums of large arrays that go on in the background: each member gives a part [at, at + n) of its own array `base`
 * (host memory, the same sizes in every member; not to be touched until od_member_reduced). The parts of a step don't
 * overlap. Does not wait for other members. */
od_status od_member_reduce(od_member *m, float *base, size_t at, size_t n);
/* Waits for all parts of the step. *total is member 0's array of this process with the sums in the parts' places: valid
 * until the first od_member_sum of the next step has returned in every member. */
od_status od_member_reduced(od_member *m, const float **total);

/* Of an array of `total` floats each member has own (n) at `first`; members lie in order, without gaps. *all: the
 * whole, shared by the members of the process and only to be read, until the next gather or exchange. */
od_status od_member_gather(od_member *m, const float **all, const float *own, size_t first, size_t n, size_t total);

/* all (members, bytes): own (bytes) of each, in every member. */
od_status od_member_exchange(od_member *m, void *all, const void *own, size_t bytes);

/* data (bytes) of the leader, to all. */
od_status od_member_share(od_member *m, void *data, size_t bytes);

/* Seconds that this member spent in calls on the team, waiting for others among them, since the last reset. */
double od_member_waited(const od_member *m);
void od_member_reset_waited(od_member *m);

#endif
