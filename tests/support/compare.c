/* Comparator, deterministic data and gradient check of the test harness: host only. */
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <Random123/philox.h>

/* ---- comparison ------------------------------------------------------------------------------------------------- */

static bool is_unset(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits == OD_UNSET_BITS;
}

/* What the reference alone says: its norm and largest element, and whether it could reveal an error. */
typedef struct reference_facts {
    double norm2, largest;
    bool finite, mistrusted;
} reference_facts;

static reference_facts look_at_reference(const double *ref, size_t elements) {
    reference_facts facts = {.finite = true, .mistrusted = true};
    for (size_t i = 0; i < elements; i++) {
        facts.finite = facts.finite && isfinite(ref[i]);
        facts.norm2 += ref[i] * ref[i];
        facts.largest = fmax(facts.largest, fabs(ref[i]));
        if (ref[i] != ref[0])
            facts.mistrusted = false;
    }
    if (elements == 1) /* a scalar is constant without fault, unless it is 0 */
        facts.mistrusted = ref[0] == 0;
    return facts;
}

static void describe(od_comparison *c, const float *out, const double *ref, size_t elements, double rel_tol,
                     double abs_tol) {
    size_t used = (size_t)snprintf(
        c->text, sizeof c->text,
        "relative error %.3g (limit %.3g), largest %.3g at %zu of %zu (limit %.3g): %.9g, not %.9g", c->relative,
        rel_tol, c->largest, c->largest_at, elements, abs_tol, out[c->largest_at], ref[c->largest_at]);
    if (c->not_finite && used < sizeof c->text)
        used +=
            (size_t)snprintf(c->text + used, sizeof c->text - used, "; %zu not finite, first at %zu; %zu never written",
                             c->not_finite, c->not_finite_at, c->unset);
    if (c->mistrusted && used < sizeof c->text)
        snprintf(c->text + used, sizeof c->text - used, "; mistrusted: the reference is %s",
                 ref[0] == 0 ? "all zero" : "constant");
}

od_comparison od_compare(const float *out, const double *ref, size_t elements, double rel_tol, double abs_tol) {
    od_comparison c = {.relative = INFINITY};
    if (elements == 0) {
        snprintf(c.text, sizeof c.text, "nothing to compare: zero elements");
        return c;
    }
    reference_facts facts = look_at_reference(ref, elements);
    if (!facts.finite) {
        snprintf(c.text, sizeof c.text, "the reference itself is not finite (%zu elements)", elements);
        return c;
    }
    double error2 = 0;
    for (size_t i = 0; i < elements; i++) {
        if (!isfinite(out[i])) {
            if (c.not_finite++ == 0)
                c.not_finite_at = i;
            c.unset += is_unset(out[i]);
            continue;
        }
        double error = fabs(out[i] - ref[i]);
        error2 += error * error;
        if (error > c.largest) {
            c.largest = error;
            c.largest_at = i;
        }
    }
    if (facts.norm2 > 0)
        c.relative = sqrt(error2 / facts.norm2);
    else if (error2 == 0)
        c.relative = 0;
    double limit = abs_tol > 0 ? abs_tol : 32 * rel_tol * facts.largest;
    bool relative_fits = facts.norm2 == 0 || c.relative <= rel_tol;
    c.within = c.not_finite == 0 && relative_fits && c.largest <= limit;
    c.mistrusted = facts.mistrusted;
    c.pass = c.within && !c.mistrusted;
    describe(&c, out, ref, elements, rel_tol, limit);
    return c;
}

/* ---- data ------------------------------------------------------------------------------------------------------- */

static void draw(uint32_t words[4], uint32_t seed, uint32_t stream, size_t block) {
    philox4x32_ctr_t counter = {{(uint32_t)block, (uint32_t)((uint64_t)block >> 32), stream, 0x7e57u}};
    philox4x32_key_t key = {{seed, 0x0ffd1a6u}};
    philox4x32_ctr_t result = philox4x32(counter, key);
    for (int i = 0; i < 4; i++)
        words[i] = result.v[i];
}

void od_data_uniform(float *out, size_t elements, uint32_t seed, uint32_t stream) {
    uint32_t words[4] = {0};
    for (size_t i = 0; i < elements; i++) {
        if (i % 4 == 0)
            draw(words, seed, stream, i / 4);
        out[i] = (float)(words[i % 4] >> 8) * 0x1p-23f - 1.0f; /* 24 bits: exact */
    }
}

void od_data_normal(float *out, size_t elements, uint32_t seed, uint32_t stream) {
    uint32_t words[4] = {0};
    for (size_t i = 0; i < elements; i++) {
        if (i % 2 == 0)
            draw(words, seed, stream ^ 0x80000000u, i / 2);
        double radius = sqrt(-2 * log((words[0] + 1.0) * 0x1p-32)), angle = 2 * M_PI * words[1] * 0x1p-32;
        out[i] = (float)(radius * (i % 2 ? sin(angle) : cos(angle)));
    }
}

void od_data_index(uint32_t *out, size_t elements, uint32_t below, uint32_t seed, uint32_t stream) {
    uint32_t words[4] = {0};
    for (size_t i = 0; i < elements; i++) {
        if (i % 4 == 0)
            draw(words, seed, stream ^ 0x40000000u, i / 4);
        out[i] = (uint32_t)((uint64_t)words[i % 4] * below >> 32);
    }
}

/* ---- gradients -------------------------------------------------------------------------------------------------- */

/* One direction: the difference of the losses, and <gradient, x+ - x->, both over the same pair of points. */
static od_status along(od_loss_fn loss, void *context, const float *x, const float *gradient, size_t elements,
                       double step, uint32_t direction, double *point, double *difference, double *predicted) {
    double value[2] = {0};
    *predicted = 0;
    for (int side = 0; side < 2; side++) {
        uint32_t words[4] = {0};
        for (size_t i = 0; i < elements; i++) {
            if (i % 128 == 0)
                draw(words, direction, 0x6d, i / 128);
            double sign = words[i % 128 / 32] >> (i % 32) & 1 ? 1 : -1;
            double plus = (float)(x[i] + sign * step), minus = (float)(x[i] - sign * step);
            point[i] = side == 0 ? plus : minus;
            if (side == 0)
                *predicted += gradient[i] * (plus - minus);
        }
        od_status status = loss(context, point, elements, &value[side]);
        if (status != OD_OK)
            return status;
    }
    *difference = value[0] - value[1];
    return OD_OK;
}

od_comparison od_compare_gradient(od_loss_fn loss, void *context, const float *x, const float *gradient,
                                  size_t elements, double step, int directions, double tolerance) {
    od_comparison c = {.relative = INFINITY};
    double norm2 = 0;
    for (size_t i = 0; i < elements; i++) {
        norm2 += (double)gradient[i] * gradient[i];
        if (!isfinite(gradient[i]) && c.not_finite++ == 0)
            c.not_finite_at = i;
        c.unset += is_unset(gradient[i]);
    }
    if (elements == 0 || c.not_finite || norm2 == 0 || directions < 1 || !(step > 0)) {
        c.mistrusted = norm2 == 0;
        snprintf(c.text, sizeof c.text,
                 "gradient of %zu elements: %zu not finite, first at %zu; %zu never written; norm %.3g; %d directions, "
                 "step %g",
                 elements, c.not_finite, c.not_finite_at, c.unset, sqrt(norm2), directions, step);
        return c;
    }
    double *point = calloc(elements, sizeof *point);
    if (!point) {
        snprintf(c.text, sizeof c.text, "no host memory for %zu elements", elements);
        return c;
    }
    double worst = 0, difference = 0, predicted = 0;
    od_status status = OD_OK;
    for (int d = 0; d < directions && status == OD_OK && isfinite(worst); d++) {
        status = along(loss, context, x, gradient, elements, step, (uint32_t)d, point, &difference, &predicted);
        double error = fabs(difference - predicted) / (2 * step * sqrt(norm2));
        worst = isfinite(error) ? fmax(worst, error) : INFINITY; /* fmax alone would drop a NaN */
    }
    free(point);
    if (status != OD_OK) {
        snprintf(c.text, sizeof c.text, "the loss failed: %s", od_error_message());
        return c;
    }
    c.relative = worst;
    c.pass = c.within = worst <= tolerance;
    snprintf(
        c.text, sizeof c.text,
        "directional derivatives of %zu elements: worst error %.3g of ||gradient|| (limit %.3g); last direction %.6g, "
        "not %.6g",
        elements, worst, tolerance, predicted / (2 * step), difference / (2 * step));
    return c;
}
