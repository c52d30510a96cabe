#!/usr/bin/env python3
"""Steps of the optimisers by PyTorch in double precision -> tests/golden/optim.safetensors.

Needs torch and numpy (Debian's python3-torch). Of SGD, Adam and AdamW by torch.optim, and of LARS by its formula (You et
al. 2017, clipped, as solo-learn has it): parameters and gradients, which are floats, and the parameters after each step.
"""
import json
import os
import struct

import numpy as np
import torch

SHAPES = [(7, 5), (11,), (4, 3)]   # LARS leaves the vector out of trust ratio and decay
STEPS = 4
SETTINGS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "beta2": 0.99, "eta": 0.02}


def lars(params, grads):
    s, buffers = SETTINGS, [torch.zeros_like(p) for p in params]
    for g_step in grads:
        for p, g, m in zip(params, g_step, buffers):
            d = g.clone()
            if p.dim() > 1:
                trust = s["eta"] * p.norm() / (g.norm() + s["weight_decay"] * p.norm() + 1e-8)
                d = (g + s["weight_decay"] * p) * min(trust / s["lr"], 1)
            m.mul_(s["momentum"]).add_(d)
            p.sub_(s["lr"] * m)
        yield


def by_torch(kind, params, grads):
    s = SETTINGS
    betas = {"lr": s["lr"], "betas": (s["momentum"], s["beta2"]), "weight_decay": s["weight_decay"]}
    optimizer = {"sgd": lambda: torch.optim.SGD(params, s["lr"], momentum=s["momentum"], weight_decay=s["weight_decay"]),
                 "adam": lambda: torch.optim.Adam(params, **betas),
                 "adamw": lambda: torch.optim.AdamW(params, **betas)}[kind]()
    for g_step in grads:
        for p, g in zip(params, g_step):
            p.grad = g.clone()
        optimizer.step()
        yield


def flat(tensors):
    return np.concatenate([t.detach().numpy().reshape(-1) for t in tensors])


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    rng = np.random.default_rng(1)
    draw = lambda shape: torch.from_numpy(rng.normal(size=shape).astype(np.float32).astype(np.float64))
    start, grads = [draw(s) for s in SHAPES], [[draw(s) for s in SHAPES] for _ in range(STEPS)]
    grads = [[g * (1e-4 if i == 2 else 1) for i, g in enumerate(g_step)] for g_step in grads]   # a factor that is clipped
    grads = [[g.float().double() for g in g_step] for g_step in grads]
    tensors = {"start": flat(start).astype(np.float32), "grads": np.stack([flat(g) for g in grads]).astype(np.float32)}
    for kind in ("sgd", "lars", "adam", "adamw"):
        params = [p.clone() for p in start]
        steps = lars(params, grads) if kind == "lars" else by_torch(kind, params, grads)
        tensors[kind] = np.stack([flat(params) for _ in steps])
    header, data = {"__metadata__": {"made_by": f"tools/make_optim_golden.py, torch {torch.__version__}"}}, b""
    for name, a in sorted(tensors.items(), key=lambda kv: (-kv[1].itemsize, kv[0])):
        header[name] = {"dtype": "F64" if a.itemsize == 8 else "F32", "shape": list(a.shape),
                        "data_offsets": [len(data), len(data) + a.nbytes]}
        data += a.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(root, "tests/golden/optim.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


if __name__ == "__main__":
    main()
