/* The prediction head p = head(z): none (the identity), I + offdiag(V), a linear map, or a two-layer perceptron. */
#ifndef MODEL_HEAD_H
#define MODEL_HEAD_H

#include "model/mlp.h"

typedef struct od_head {
    od_head_kind kind;
    int d;
    size_t v;   /* (d, d): V of offdiag, W of linear */
    od_span w;  /* offdiag: (d, d) made by od_head_update; linear: the arena's own */
    od_mlp mlp; /* MLP */
    od_span p;  /* kept (max_rows, d); none: unused */
} od_head;

od_status od_head_create(od_head *h, const od_builder *b, od_head_kind kind, int d, int hidden);
od_status od_head_update(od_head *h, const od_net *net);
/* Training form only: a head is not used in evaluation. *p may be z itself. */
od_status od_head_forward(od_head *h, const od_net *net, od_span *p, od_span z, int n);
/* *dz: dp itself for `none`, else `dz_memory`. dp is not kept. */
od_status od_head_backward(od_head *h, const od_net *net, od_span *dz, od_span dz_memory, od_span dp, od_span z, int n,
                           bool accumulate);
void od_head_destroy(od_head *h);

#endif
