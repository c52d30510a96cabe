/* The OpenCL programs of cl/, their includes resolved; written at build time by tools/embed_cl.py. */
#ifndef DEVICE_EMBEDDED_H
#define DEVICE_EMBEDDED_H

typedef struct od_cl_program {
    const char *name;        /* file name without .cl */
    const char *const *text; /* pieces that end with NULL; a compiler need not take longer literals */
} od_cl_program;

extern const od_cl_program od_cl_programs[]; /* ends with a NULL name */

#endif
