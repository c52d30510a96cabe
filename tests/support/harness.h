/* The harness for tests of operations on a device. One Criterion test walks one case list:
 *
 *     Test(conv, forward) {
 *         od_cases *c = od_cases_begin(od_test_device(OD_FAMILY_CPU));
 *         for (size_t i = 0; i < OD_COUNT(shapes); i++) {
 *             if (!od_case(c, "conv fwd family=cpu n=%d h=%d", shapes[i].n, shapes[i].h))
 *                 continue;                                       // filtered out
 *             float *x = od_case_normals(c, nx, 0), *w = od_case_normals(c, nw, 1);
 *             double *ref = od_case_alloc(c, ny * sizeof *ref);
 *             od_span xs = od_case_input(c, "x", x, nx), ws = od_case_input(c, "w", w, nw);
 *             od_span ys = od_case_output(c, "y", ny);
 *             reference(ref, x, w, shapes[i]);
 *             if (od_case_ok(c, od_conv_forward(...)))
 *                 od_case_expect(c, ys, ref, 1e-5, 0);
 *         }
 *         od_cases_end(c);
 *     }
 *
 * Every tensor lies between guard bands at an odd offset; outputs start as NaN; inputs must come back unchanged; the
 * next od_case (or od_cases_end) checks that and frees the case's memory. A case that compares nothing fails. A failing
 * case is reported with the command that reruns it alone, the walk goes on, and the test fails at its end.
 *
 * Variables: OFFDIAG_TEST_DEVICE (device specification, default "auto"), OFFDIAG_CASE (run only the cases that contain
 * this text; "=TEXT": that are this text), OFFDIAG_TEST_WORK (see od_test_affords), OFFDIAG_TEST_CACHE (where kernels
 * are cached), OFFDIAG_TEST_WHOLE (see od_test_is_whole), OFFDIAG_TEST_VERBOSE (name each case). Criterion forks for
 * each test: nothing here touches OpenCL before a test runs. */
#ifndef TEST_HARNESS_H
#define TEST_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "offdiag/device.h"

#define OD_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Sizes at and around the edges of vectors, tiles and work-groups. */
static const int od_odd_sizes[] = {1, 2, 3, 5, 7, 13, 17, 31, 33, 63, 65, 127, 129, 255, 257, 1023, 1025};

/* ---- device ----------------------------------------------------------------------------------------------------- */

/* The device under test, opened once per process and family; the test fails if it can't be. Never close it. */
od_device *od_test_device(od_family family);

/* Point the kernel cache at the one beside the test executables, unless XDG_CACHE_HOME is set: for tests that start
 * the program. od_test_device does it too. */
void od_test_use_cache(void);

/* Whether a case of so many multiply-adds is worth its time here: false above OFFDIAG_TEST_WORK, which slow devices
 * such as a simulator set. Lists say `if (!od_test_affords(macs)) continue;` and keep cases small enough for 100,000.
 */
bool od_test_affords(double multiply_adds);

/* Whether the long form of the executable runs (OFFDIAG_TEST_WHOLE is set; meson's NAME_whole): cases that take much
 * time for what they tell beside the others run only there. Skips the test otherwise. */
bool od_test_is_whole(void);
void od_test_needs_whole(void);

/* Fail the running test at once, with the library's message, unless `status` is OD_OK. */
#define OD_MUST(status) od_must((status), #status, __FILE__, __LINE__)
void od_must(od_status status, const char *what, const char *file, int line);

/* ---- guarded tensors -------------------------------------------------------------------------------------------- */

enum { OD_GUARD = 256 };          /* elements in each guard band, at least */
#define OD_GUARD_BITS 0x7fc0dea1u /* in the guard bands: a NaN, so that what reads them shows */
#define OD_UNSET_BITS 0x7fc0beefu /* in outputs before the operation: a NaN too */

typedef struct od_guarded {
    od_span span;           /* the tensor */
    size_t elements, after; /* of 4 bytes; `span.offset` elements of guard before, `after` after */
    bool sealed;            /* od_guarded_check also wants the content as it was sealed */
    uint64_t checksum;
} od_guarded;

/* A tensor of unset elements between guard bands; odd_offset: its offset is odd, otherwise a multiple of 64. These fail
 * the running test when the device does. */
od_guarded od_guarded_create(od_device *device, size_t elements, bool odd_offset);
void od_guarded_write(od_guarded *g, const void *words); /* all its elements, 4 bytes each */
void od_guarded_read(const od_guarded *g, void *words);
void od_guarded_seal(od_guarded *g); /* from here on its content must not change */
/* False, with a reason in `why`, if a guard band (bit by bit) or a sealed content changed. */
bool od_guarded_check(const od_guarded *g, char *why, size_t why_size);
void od_guarded_release(od_guarded *g);

/* ---- comparison ------------------------------------------------------------------------------------------------- */

typedef struct od_comparison {
    bool pass;       /* within tolerance, all finite, not mistrusted */
    bool within;     /* within tolerance, all finite */
    bool mistrusted; /* the reference is all zero, or one constant: it would not reveal an error */
    double relative; /* ||out - ref|| / ||ref||; infinity where ref is zero and out is not */
    double largest;  /* largest |out - ref| over the finite elements */
    size_t largest_at, not_finite, not_finite_at, unset; /* unset: elements nobody wrote, among not_finite */
    char text[320];                                      /* all of it in words */
} od_comparison;

/* Passes when relative <= rel_tol and largest <= abs_tol; abs_tol 0 stands for 32 rel_tol max|ref|. Zero elements, a
 * reference that is not finite, and a NaN or infinity in `out` never pass. An all-zero reference asks for largest <=
 * abs_tol only. */
od_comparison od_compare(const float *out, const double *ref, size_t elements, double rel_tol, double abs_tol);

/* ---- data ------------------------------------------------------------------------------------------------------- */

/* Philox 4x32-10 of (seed, stream, index): the same on every machine, whatever was drawn before. */
void od_data_uniform(float *out, size_t elements, uint32_t seed, uint32_t stream); /* [-1, 1) */
void od_data_normal(float *out, size_t elements, uint32_t seed, uint32_t stream);  /* mean 0, variance 1 */
void od_data_index(uint32_t *out, size_t elements, uint32_t below, uint32_t seed, uint32_t stream); /* 0 .. below - 1 */

/* ---- gradients -------------------------------------------------------------------------------------------------- */

/* The scalar loss at x (elements). Through a device: cast x to float; every x given is exact in float. */
typedef od_status (*od_loss_fn)(void *context, const double *x, size_t elements, double *loss);

/* Central differences of `loss` along `directions` random +-1 directions with steps of `step`, against `gradient`:
 * relative is the largest |difference - <gradient, v>| / ||gradient||. A zero or non-finite gradient never passes. */
od_comparison od_compare_gradient(od_loss_fn loss, void *context, const float *x, const float *gradient,
                                  size_t elements, double step, int directions, double tolerance);

/* ---- case lists ------------------------------------------------------------------------------------------------- */

typedef struct od_cases od_cases;

od_cases *od_cases_begin(od_device *device); /* NULL device: cases without tensors on a device */
/* Start a case; false: it is filtered out. Its text must be unique in the list. */
bool od_case(od_cases *cases, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* End the last case and the list; the test fails if a case failed or if the list was empty. A test whose cases are all
 * filtered out says so on stderr. */
void od_cases_end(od_cases *cases);

/* The case's tensors from here on start at multiples of 64 elements, so that variants which need aligned vectors run;
 * each case begins with odd offsets. */
void od_case_aligned(od_cases *cases, bool aligned);

/* Host memory, zeroed, until the case ends; the fillers above with the case's text as seed. Never NULL. */
void *od_case_alloc(od_cases *cases, size_t bytes);
float *od_case_uniforms(od_cases *cases, size_t elements, uint32_t stream);
float *od_case_normals(od_cases *cases, size_t elements, uint32_t stream);
uint32_t *od_case_indices(od_cases *cases, size_t elements, uint32_t below, uint32_t stream);

/* Guarded tensors until the case ends; elements and words are of 4 bytes (float or int32). */
od_span od_case_input(od_cases *cases, const char *name, const void *words, size_t elements); /* must not change */
od_span od_case_inout(od_cases *cases, const char *name, const void *words, size_t elements); /* may change */
od_span od_case_output(od_cases *cases, const char *name, size_t elements);                   /* starts unset */

/* Record a failure of the case unless all is well; the walk goes on. They return whether it was. */
bool od_case_ok(od_cases *cases, od_status status);
bool od_case_check(od_cases *cases, bool condition, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool od_case_expect(od_cases *cases, od_span tensor, const double *ref, double rel_tol, double abs_tol);
/* The same for a reference that is zero or constant by nature. */
bool od_case_expect_constant(od_cases *cases, od_span tensor, const double *ref, double rel_tol, double abs_tol);
bool od_case_expect_words(od_cases *cases, od_span tensor, const void *words); /* bit by bit */
/* For a result on the host, or one made by od_compare_gradient. */
bool od_case_expect_host(od_cases *cases, const char *name, const float *out, const double *ref, size_t elements,
                         double rel_tol, double abs_tol);
bool od_case_passes(od_cases *cases, const char *name, const od_comparison *comparison);

/* What happened so far, for the harness's own tests. */
size_t od_cases_run(const od_cases *cases);
size_t od_cases_failed(const od_cases *cases);
const char *od_cases_last_failure(const od_cases *cases);
void od_cases_discard(od_cases *cases); /* free without a verdict */

#endif
