#!/usr/bin/env python3
"""Time the theory's sampled training in NumPy, written the way one writes it there: every array over all seeds.

usage: tools/peer_theory.py [--seeds N] [--steps N] [--batch N] [--dimension N] [--projected] [--check]
Prints seeds x steps per second; compare with `offdiag theory --level sampled --alone --dimension N [--draw all]`. By
default every component of the noise is drawn; --projected draws what `offdiag theory` draws (see cl/theory.cl).
--check prints how many seeds learned both at the end, to see that it trains the same thing."""
import argparse
import time

import numpy as np

F = np.float32
STRENGTH, PATCHES, P0, NOISE, ETA, ETA_HEAD = np.array([2, 1.25], F), 16, 6, F(1), F(0.05), F(0.015)


def start(rng, seeds, d):
    """The controlled start: w (seeds, 2, d), head (seeds, 2, 2)."""
    w = rng.standard_normal((seeds, 2, d), dtype=F) / np.sqrt(F(d))
    size = (1 + F(0.25) * rng.uniform(-1, 1, (seeds, 2, 2)).astype(F)) / np.sqrt(F(d))
    w[:, :, :2] = size * rng.choice(np.array([-1, 1], F), (seeds, 2, 2))
    return w, np.tile(np.eye(2, dtype=F), (seeds, 1, 1))


def step(rng, w, head, batch, outside):
    """One step of every seed; outside: dimensions that are not drawn, 0 for none."""
    seeds, _, d = w.shape
    noisy = PATCHES - P0
    feature = rng.integers(0, 2, (seeds, batch))
    z = STRENGTH[feature] * rng.choice(np.array([-1, 1], F), (seeds, batch))
    n1 = rng.hypergeometric(P0, noisy, PATCHES // 2, (seeds, batch)).astype(F)
    in_first = np.arange(noisy) < (PATCHES // 2 - n1)[..., None]                   # (seeds, batch, noisy)
    xi = rng.standard_normal((seeds, batch, noisy, d - 2), dtype=F) * NOISE
    # x = <w_r, X_p>: (seeds, batch, noisy, 2)
    x = np.matmul(xi.reshape(seeds, batch * noisy, d - 2), w[:, :, 2:].transpose(0, 2, 1)).reshape(seeds, batch, noisy, 2)
    cubes = x * x * x
    u1 = (cubes * in_first[..., None]).sum(2)                                       # (seeds, batch, 2)
    u2 = cubes.sum(2) - u1
    along = np.take_along_axis(w[:, :, :2], feature[:, None, :], 2).transpose(0, 2, 1)  # <w_r, v_l>: (seeds, batch, 2)
    signal = (z[..., None] * along) ** 3
    f = np.stack([n1[..., None] * signal + u1, n1[..., None] * signal - u1], 1)     # (seeds, 2 copies, batch, 2)
    n2 = P0 - n1
    g = np.stack([n2[..., None] * signal + u2, n2[..., None] * signal - u2], 1)
    online = np.matmul(f.reshape(seeds, -1, 2), head.transpose(0, 2, 1)).reshape(f.shape)

    def normalised(y):
        y = y - y.mean((1, 2), keepdims=True)
        scale = 1 / np.sqrt((y * y).mean((1, 2), keepdims=True))
        return y * scale, scale

    fhat, scale = normalised(online)
    ghat, _ = normalised(g)
    target = ghat.sum(1, keepdims=True)                                             # over the copies of view 2
    correlation = (fhat.sum(1) * ghat.sum(1)).mean(1)[:, None, None, :] / 4
    d_online = 2 / F(4 * batch) * scale * (2 * correlation * fhat - target)
    d_head = np.matmul(d_online.reshape(seeds, -1, 2).transpose(0, 2, 1), f.reshape(seeds, -1, 2))
    df = np.matmul(d_online.reshape(seeds, -1, 2), head).reshape(f.shape)
    even, odd = df.sum(1), df[:, 0] - df[:, 1]                                      # (seeds, batch, 2)
    dw = np.zeros_like(w)
    along_slope = 3 * even * (n1 * z)[..., None] * (z[..., None] * along) ** 2
    for l in range(2):
        dw[:, :, l] = (along_slope * (feature == l)[..., None]).sum(1)
    weight = 3 * odd[:, :, None, :] * x * x * in_first[..., None]                   # (seeds, batch, noisy, 2)
    flat = weight.reshape(seeds, batch * noisy, 2)
    dw[:, :, 2:] = np.matmul(flat.transpose(0, 2, 1), xi.reshape(seeds, batch * noisy, d - 2))
    w = w - ETA * dw
    d_head[:, [0, 1], [0, 1]] = 0
    head = head - ETA_HEAD * d_head
    if outside:
        w = move_outside(rng, w, NOISE * flat, outside)
    return w, head


def move_outside(rng, w, weight, outside):
    """Bartlett's form of the Wishart matrix that the noise outside the span adds to the Gram matrix."""
    seeds = len(w)
    covariance = np.matmul(weight.transpose(0, 2, 1), weight)
    factor = np.linalg.cholesky(covariance + 1e-30 * np.eye(2))
    bartlett = np.zeros((seeds, 2, 2), F)
    bartlett[:, 0, 0] = np.sqrt(rng.chisquare(outside, seeds))
    bartlett[:, 1, 1] = np.sqrt(rng.chisquare(outside - 1, seeds))
    bartlett[:, 1, 0] = rng.standard_normal(seeds, dtype=F)
    x = np.concatenate([w[:, :, 2:], ETA * np.matmul(factor, bartlett)], 2)
    gram = np.matmul(x, x.transpose(0, 2, 1)).astype(np.float64)
    w[:, :, 2:] = np.linalg.cholesky(gram)
    return w


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seeds', type=int, default=1000)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--dimension', type=int, default=50)
    parser.add_argument('--projected', action='store_true')
    parser.add_argument('--check', action='store_true')
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    w, head = start(rng, args.seeds, args.dimension)
    outside = 0
    if args.projected:
        outside = args.dimension - 4
        gram = np.matmul(w[:, :, 2:], w[:, :, 2:].transpose(0, 2, 1)).astype(np.float64)
        w = np.concatenate([w[:, :, :2], np.linalg.cholesky(gram).astype(F)], 2)
    w, head = step(rng, w, head, args.batch, outside)
    began = time.perf_counter()
    for _ in range(args.steps):
        w, head = step(rng, w, head, args.batch, outside)
    seconds = time.perf_counter() - began
    print(f'{args.seeds} seeds, {args.steps} steps: {seconds:.2f} s, {args.seeds * args.steps / seconds:.3g} seeds x steps per second')
    if args.check:
        learned = np.abs(w[:, :, :2]) > 0.9 * np.sqrt((w * w).sum(2, keepdims=True))
        print(f'both: {learned.any(1).all(1).sum()} of {args.seeds}, collapse_v1: {learned[:, :, 0].all(1).sum()}')


main()
