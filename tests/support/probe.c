#include "probe.h"

#include <math.h>
#include <stdlib.h>

od_probe od_probe_create(od_device *device, const od_model_config *config, int n, float *images) {
    od_probe p = {.n = n};
    const size_t count = 2 * (size_t)n * config->image_size * config->image_size * 4;
    for (size_t i = 3; i < count; i += 4)
        images[i] = 0;
    OD_MUST(od_span_create(device, count, &p.x));
    OD_MUST(od_span_write(p.x, images, count));
    OD_MUST(od_model_create(device, config, n, &p.model));
    OD_MUST(od_span_create(device, 1, &p.loss));
    p.count = od_model_params(p.model)->count;
    return p;
}

void od_probe_destroy(od_probe *p) {
    od_model_destroy(p->model);
    od_buffer_release(p->loss.buffer);
    od_buffer_release(p->x.buffer);
}

void od_probe_step(od_probe *p) {
    OD_MUST(od_model_step(p->model, p->loss, p->x, p->n, 1, false));
}

void od_probe_update(od_probe *p) {
    const od_optim_rates sgd = {.lr = 0.1f, .head_lr = 0.3f, .ema_tau = 1};
    OD_MUST(od_model_optimize(p->model, &sgd));
}

float *od_span_to_host(od_span s, size_t count) {
    float *host = malloc((count + 1) * sizeof *host);
    OD_MUST(od_span_read(s, host, count));
    return host;
}

od_status od_probe_loss(void *context, const double *w, size_t elements, double *loss) {
    od_probe *p = context;
    float *host = malloc(elements * sizeof *host), value = NAN;
    for (size_t i = 0; i < elements; i++)
        host[i] = (float)w[i];
    od_status status = od_span_write(od_model_get_arenas(p->model).value, host, elements);
    free(host);
    if (status || (status = od_model_update(p->model)) ||
        (status = od_model_step(p->model, p->loss, p->x, p->n, 1, false)) ||
        (status = od_span_read(p->loss, &value, 1)))
        return status;
    *loss = value;
    return OD_OK;
}

/* The step is small because the direction crosses the kinks of many ReLUs: errors of 0.01 with it, up to 0.3 with 40
 * times the step. */
void od_probe_check_gradient(od_cases *cases, od_probe *p, double tolerance) {
    const double step = 5e-6;
    enum { DIRECTIONS = 6 };
    od_probe_step(p);
    od_probe_update(p);
    od_probe_step(p);
    const od_model_arenas a = od_model_get_arenas(p->model);
    float *w = od_span_to_host(a.value, p->count), *gradient = od_span_to_host(a.grad, p->count);
    od_comparison c = od_compare_gradient(od_probe_loss, p, w, gradient, p->count, step, DIRECTIONS, tolerance);
    (void)od_case_passes(cases, "gradient", &c);
    for (size_t i = 0; i < p->count; i++)
        gradient[i] *= 1.1f;
    c = od_compare_gradient(od_probe_loss, p, w, gradient, p->count, step, DIRECTIONS, tolerance);
    od_case_check(cases, !c.pass, "a gradient that is 10 %% too long passes");
    free(w);
    free(gradient);
}
