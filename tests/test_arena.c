/* The plan of activations: tensors that live together never overlap, none crosses two allocations, and what can be
 * shared is. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "harness.h"
#include "model/arena.h"

enum { TENSORS = 60, ROUNDS = 200 };

static size_t next(uint64_t *state, size_t below) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(*state >> 33) % below;
}

Test(arena, random_plans_hold) {
    uint64_t state = 7;
    for (int round = 0; round < ROUNDS; round++) {
        od_place places[TENSORS] = {0};
        size_t sizes[TENSORS], total = 0, live_most = 0;
        int first[TENSORS], last[TENSORS];
        od_plan plan = {0};
        const size_t part = round % 2 ? 4096 : 1 << 20;
        for (int i = 0; i < TENSORS; i++) {
            sizes[i] = (next(&state, 4096) + 63) / 64 * 64;
            first[i] = (int)next(&state, 30);
            last[i] = first[i] + (int)next(&state, 6);
            od_plan_add(&plan, &places[i], sizes[i], first[i], last[i]);
        }
        OD_MUST(od_plan_solve(&plan, part, &total));
        od_plan_free(&plan);
        for (int i = 0; i < TENSORS; i++) {
            cr_assert(places[i].used && places[i].offset + sizes[i] <= total);
            if (!sizes[i])
                continue;
            cr_assert_eq(places[i].offset / part, (places[i].offset + sizes[i] - 1) / part, "crosses two parts");
            for (int j = 0; j < i; j++)
                if (sizes[j] && first[j] <= last[i] && first[i] <= last[j])
                    cr_assert(places[i].offset + sizes[i] <= places[j].offset ||
                                  places[j].offset + sizes[j] <= places[i].offset,
                              "tensors %d and %d live together and overlap", i, j);
        }
        for (int t = 0; t < 36; t++) {
            size_t live = 0;
            for (int i = 0; i < TENSORS; i++)
                live += first[i] <= t && t <= last[i] ? sizes[i] : 0;
            live_most = live > live_most ? live : live_most;
        }
        if (part > 4096)
            cr_assert_leq(total, live_most + live_most / 2, "%zu for %zu that live together", total, live_most);
    }
}

Test(arena, refuses_what_one_allocation_cannot_hold) {
    od_plan plan = {0};
    od_place place;
    size_t total;
    od_plan_add(&plan, &place, 5000, 0, 0);
    cr_assert_eq(od_plan_solve(&plan, 4096, &total), OD_ERR_DEVICE_MEMORY);
    od_plan_free(&plan);
}
