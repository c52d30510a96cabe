/* The linear probe on data whose answer is known. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "harness.h"
#include "train/linear.h"

enum { D = 12, CLASSES = 5 };

/* n rows around CLASSES random centres, `noise` away, times `scale`; labels by centre, or drawn when random. */
static od_features make(int n, float noise, float scale, bool random_labels, uint32_t stream) {
    static float centres[CLASSES * D];
    float *x = malloc((size_t)n * D * sizeof *x);
    int32_t *labels = malloc((size_t)n * sizeof *labels);
    od_data_normal(centres, CLASSES * D, 7, 0);
    od_data_normal(x, (size_t)n * D, 7, stream);
    od_data_index((uint32_t *)labels, (size_t)n, CLASSES, 8, stream);
    for (int i = 0; i < n; i++) {
        int centre = random_labels ? 0 : labels[i];
        for (int j = 0; j < D; j++)
            x[i * D + j] = scale * (centres[centre * D + j] + noise * x[i * D + j] + 1);
    }
    return (od_features){.x = x, .labels = labels, .n = n};
}

static void drop(od_features f) {
    free((void *)f.x);
    free((void *)f.labels);
}

Test(linear, separable_data_is_learned_on_any_scale) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    const float scales[] = {0.1f, 1, 5};
    for (size_t i = 0; i < OD_COUNT(scales); i++) {
        od_features train = make(1000, 0.4f, scales[i], false, 1), test = make(503, 0.4f, scales[i], false, 2);
        od_probe_config config;
        od_probe_result result;
        od_probe_config_default(&config);
        config.epochs = 30;
        config.sweep_epochs = 10;
        OD_MUST(od_linear_probe(device, &result, &config, &train, &test, D, CLASSES));
        cr_assert_gt(result.accuracy, 0.99, "scale %g: accuracy %.4f with lr %g", scales[i], result.accuracy,
                     result.lr);
        cr_assert_gt(result.held_out_accuracy, 0.95, "scale %g: %.4f", scales[i], result.held_out_accuracy);
        drop(train);
        drop(test);
    }
}

Test(linear, random_labels_stay_at_chance) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_features train = make(1500, 1, 1, true, 3), test = make(2000, 1, 1, true, 4);
    od_probe_config config;
    od_probe_result result;
    od_probe_config_default(&config);
    config.epochs = 10;
    config.lr = 0.1f;
    OD_MUST(od_linear_probe(device, &result, &config, &train, &test, D, CLASSES));
    cr_assert(fabs(result.accuracy - 1.0 / CLASSES) < 0.05, "accuracy %.4f", result.accuracy); /* 5.6 standard errors */
    cr_assert(isnan(result.held_out_accuracy));
    cr_assert_eq(result.lr, 0.1f);
    drop(train);
    drop(test);
}

Test(linear, one_seed_one_result) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_features train = make(700, 1.5f, 1, false, 5), test = make(300, 1.5f, 1, false, 6);
    od_probe_config config;
    od_probe_result first, again, other;
    od_probe_config_default(&config);
    config.epochs = 5;
    config.sweep_epochs = 2;
    config.seed = 11;
    OD_MUST(od_linear_probe(device, &first, &config, &train, &test, D, CLASSES));
    OD_MUST(od_linear_probe(device, &again, &config, &train, &test, D, CLASSES));
    cr_assert(first.accuracy == again.accuracy && first.train_loss == again.train_loss && first.lr == again.lr &&
              first.held_out_accuracy == again.held_out_accuracy);
    config.seed = 12;
    OD_MUST(od_linear_probe(device, &other, &config, &train, &test, D, CLASSES));
    cr_assert_neq(first.train_loss, other.train_loss);
    drop(train);
    drop(test);
}

Test(linear, bad_input) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_features train = make(40, 1, 1, false, 7), test = make(40, 1, 1, false, 8);
    od_probe_config config;
    od_probe_result result;
    od_probe_config_default(&config);
    config.epochs = 3;
    config.lr = 1;
    ((int32_t *)train.labels)[3] = CLASSES;
    cr_assert_eq(od_linear_probe(device, &result, &config, &train, &test, D, CLASSES), OD_ERR_ARGUMENT);
    ((int32_t *)train.labels)[3] = 0;
    ((float *)train.x)[5] = NAN;
    cr_assert_eq(od_linear_probe(device, &result, &config, &train, &test, D, CLASSES), OD_ERR_NUMERIC);
    config.lr = 0;
    cr_assert_eq(od_linear_probe(device, &result, &config, &train, &test, D, CLASSES), OD_ERR_NUMERIC);
    ((float *)train.x)[5] = 0;
    train.n = 1;
    cr_assert_eq(od_linear_probe(device, &result, &config, &train, &test, D, CLASSES), OD_ERR_ARGUMENT);
    config.batch = 0;
    cr_assert_eq(od_linear_probe(device, &result, &config, &train, &test, D, CLASSES), OD_ERR_ARGUMENT);
    train.n = 40;
    drop(train);
    drop(test);
}
