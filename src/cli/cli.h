/* The subcommands: one file each. argv[0] is the subcommand's name. Data goes to stdout, all else to stderr. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "offdiag/status.h"

od_status cmd_devices(int argc, char **argv);
od_status cmd_selftest(int argc, char **argv);
od_status cmd_train(int argc, char **argv);
od_status cmd_eval(int argc, char **argv);
od_status cmd_embed(int argc, char **argv);
od_status cmd_export(int argc, char **argv);
od_status cmd_fetch(int argc, char **argv);
od_status cmd_report(int argc, char **argv);
od_status cmd_study(int argc, char **argv);
od_status cmd_theory(int argc, char **argv);
od_status cmd_tune(int argc, char **argv);
od_status cmd_bench(int argc, char **argv);
od_status cmd_matrix(int argc, char **argv);

extern const char *const cli_device_types[]; /* "cpu" "gpu" "accelerator", by od_device_type */

#endif
