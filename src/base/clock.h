#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

double od_now(void);     /* monotonic seconds */
double od_cpu_now(void); /* processor seconds of this process */

#endif
