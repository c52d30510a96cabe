/* The prediction head p = head(z): none (the identity), I + offdiag(V), a linear map, a two-layer perceptron, or a map
 * set from the projections' correlations (directpred.h). */
#ifndef MODEL_HEAD_H
#define MODEL_HEAD_H

#include "model/mlp.h"

typedef struct od_head {
    od_head_kind kind;
    int d;
    size_t v;   /* (d, d): V of offdiag, W of linear */
    od_span w;  /* (d, d): offdiag: made by od_head_update; linear, directpred: in an arena */
    od_mlp mlp; /* MLP */
    od_span p;  /* kept (max_rows, d); none: unused */
    /* DirectPred: W and F (d, d) in the statistics; sum of z z^T over `rows` rows of this step (d, d) */
    size_t w_at, f_at;
    od_span sum;
    int rows;
} od_head;

od_status od_head_create(od_head *h, const od_builder *b, od_head_kind kind, int d, int hidden);
od_status od_head_update(od_head *h, const od_net *net);
/* Training form only: a head is not used in evaluation. *p may be z itself. */
od_status od_head_forward(od_head *h, const od_net *net, od_span *p, od_span z, int n);
/* *dz: dp itself for `none`, else `dz_memory`. dp is not kept. */
od_status od_head_backward(od_head *h, const od_net *net, od_span *dz, od_span dz_memory, od_span dp, od_span z, int n,
                           bool accumulate);
/* DirectPred: after a step, F moves by 1 - rho towards the step's correlations (the first step sets it), and W is set
 * every `every` steps. Other heads: nothing. */
od_status od_head_follow(od_head *h, const od_net *net, const od_model_config *config, uint64_t step);
void od_head_destroy(od_head *h);

#endif
