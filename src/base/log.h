/* Notes on stderr. OFFDIAG_LOG is a comma list of one level (error, warn, info, debug; warn by default) and topics
 * ("variants", "cache", "build", ...), for example OFFDIAG_LOG=info,cache. Level debug shows every topic. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

typedef enum od_log_level { OD_LOG_ERROR, OD_LOG_WARN, OD_LOG_INFO, OD_LOG_DEBUG } od_log_level;

void od_log(od_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
void od_log_topic(const char *topic, const char *format, ...) __attribute__((format(printf, 2, 3)));

bool od_log_topic_enabled(const char *topic); /* to skip the work of making an expensive message */

/* The level where OFFDIAG_LOG names none: for a command whose subject the notes are. */
void od_log_set_default(od_log_level level);

#endif
