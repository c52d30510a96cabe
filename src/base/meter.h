/* One line on a terminal that is drawn anew while something long goes on; elsewhere nothing. */
#ifndef BASE_METER_H
#define BASE_METER_H

#include <stdbool.h>

typedef struct od_meter {
    bool on;
    double drawn; /* monotonic seconds */
} od_meter;

od_meter od_meter_begin(bool quiet);
/* At most five times a second; `now` draws in any case. */
void od_meter_show(od_meter *meter, bool now, const char *format, ...) __attribute__((format(printf, 3, 4)));
void od_meter_end(od_meter *meter); /* the line goes */

#endif
