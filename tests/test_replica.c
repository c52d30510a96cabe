/* One model on several devices: replicas with parts of a batch agree with one model that has all of it. */
#include <criterion/criterion.h>
#include <math.h>

#include "harness.h"
#include "replicas.h"

/* Devices that round differently: with all three families of kernels. */
static void open_devices(od_device **devices, bool unlike) {
    static const od_family families[REPLICAS_MOST] = {OD_FAMILY_AUTO, OD_FAMILY_GPU, OD_FAMILY_REF};
    for (int i = 0; i < REPLICAS_MOST; i++) {
        const od_device_options options = {.family = unlike ? families[i] : OD_FAMILY_AUTO};
        cr_assert_eq(od_device_open(NULL, &options, &devices[i]), OD_OK, "%s", od_error_message());
    }
}

static void close_devices(od_device **devices) {
    for (int i = 0; i < REPLICAS_MOST; i++)
        od_device_close(devices[i]);
}

/* Every `stride`-th method, each split. */
static void check(const char *encoder, int side, size_t stride, double most) {
    od_device *devices[REPLICAS_MOST];
    open_devices(devices, false);
    for (size_t m = 0; m < replica_method_count; m += stride) {
        const od_model_config c = replica_config(m, encoder, side);
        replica_outcome alone[2] = {replica_alone(devices[0], &c, 1, 1), replica_alone(devices[0], &c, 2, 1)};
        for (size_t s = 0; s < replica_split_count; s++) {
            const replica_split *split = &replica_splits[s];
            replica_outcome out = replica_team(devices, &c, split, 1);
            const double apart =
                replica_compare(replica_method_name(m), split->name, &out, &alone[split->parts - 1], most);
            cr_log_info("%s, %s: %.1e", replica_method_name(m), split->name, apart);
            replica_outcome_free(&out);
        }
        for (int i = 0; i < 2; i++)
            replica_outcome_free(&alone[i]);
    }
    close_devices(devices);
}

Test(replica, parts_of_a_batch_are_the_batch) {
    check("cnn4", 8, 1, 1e-5);
}

Test(replica, residual_blocks_too) {
    check("resnet18", REPLICA_SIDE_MOST, 3, 1e-4); /* its gradients in float are 4e-5 off those in double precision */
}

/* Unlike devices differ in their last bits: together they must still be one model. */
Test(replica, unlike_devices_stay_together_for_fifty_steps) {
    od_test_needs_whole();
    od_device *devices[REPLICAS_MOST];
    const od_model_config c = replica_config(6, "cnn4", 8);
    open_devices(devices, true);
    replica_outcome alone = replica_alone(devices[0], &c, 1, 50);
    replica_outcome out = replica_team(devices + 1, &c, &replica_splits[1], 50);
    const double values = replica_distance(&out.value, &alone.value);
    cr_expect_lt(fabs(out.loss - alone.loss), 1e-3 * fabs(alone.loss), "loss %.6f, alone %.6f", out.loss, alone.loss);
    cr_expect_lt(values, 1e-3, "weights differ by %.2g", values);
    replica_outcome_free(&out);
    replica_outcome_free(&alone);
    close_devices(devices);
}
