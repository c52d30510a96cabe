/* The parts of `offdiag study`. */
#ifndef CLI_STUDY_H
#define CLI_STUDY_H

#include <jansson.h>

#include "train/study.h"

json_t *study_json(const od_study *s);                             /* --json; NULL without memory */
od_status study_write_report(const char *path, const od_study *s); /* --report */
void study_protocol(const od_study *s, char *to, size_t size);     /* how its figures were measured, in words */

#endif
