/* A rank of a team under MPI: usage: mpirun -n N team_ranks FAILING [die]. Every other rank has two members. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "team_script.h"

int main(int argc, char **argv) {
    char text[200] = "";
    if (argc < 2 || od_world_begin()) {
        (void)fprintf(stderr, "team_ranks: %s\n", argc < 2 ? "which member fails?" : od_error_message());
        return 2;
    }
    const int rank = od_world_rank();
    if (argc > 2 && strcmp(argv[2], "die") == 0 && rank == 1)
        _exit(3); /* the others are in a sum that never ends */
    const bool well = od_team_script_run(1 + rank % 2, (int)strtol(argv[1], NULL, 10), text);
    (void)printf("rank %d of %d: %s\n", rank, od_world_ranks(), well ? "well" : text);
    od_world_end(well ? 0 : 1);
    return well ? 0 : 1;
}
