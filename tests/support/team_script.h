/* What members of a team do together, with its outcome known: for threads of one process and for MPI ranks. */
#ifndef TEST_TEAM_SCRIPT_H
#define TEST_TEAM_SCRIPT_H

#include "dist/team.h"

/* Run by each member in a thread of its own. Member `failing` fails in the middle of a step, and the others go on
 * without it; -1: none fails. false, with what was wrong in text (at least 200): something was. */
bool od_team_script(od_member *m, int failing, char *text);

/* The script in `members` threads of this process. */
bool od_team_script_run(int members, int failing, char *text);

#endif
