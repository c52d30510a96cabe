#!/usr/bin/python3
"""Golden values of training steps, made by PyTorch in double precision: tests/golden/step.safetensors.

  make_golden.py [--out FILE]          write the file (default: tests/golden/step.safetensors beside this script's parent)
  make_golden.py --search [CASE...]    look for salts
  make_golden.py --check               repeat every case in float32 and print how far it comes from the golden values

Weights, momentum buffers, statistics and images are not stored: both sides make them from an integer hash of a tensor's
name and an element's index (PyTorch layout), see uniform(). Of every result tensor only 32 projections on random signs
and the norm are kept (the elements themselves where there are at most 32), so that a difference anywhere shows while the
file stays small.

A case is <encoder>.<method>.<head>.<loss>; some are of several steps, each with other images. The file holds, for each,
  <case>/loss                                                        F64 (steps)
  <case>/grad              F32 (tensors, 33), of the first step: 32 projections, then the norm
  <case>/value, momentum, stats, target_value, target_stats          the same, after the last step
  <case>/eval              F32 (2, 33): features and projections of its images in evaluation mode, after it
and in its metadata the rows' names (<case>.params, <case>.stats, separated by spaces; a target's are those without the
head), its sizes (<case>.sizes: images of a view, side, width, steps, factor of the learning rates), the hash's salt (<case>.salt) and the cases (cases).
Needs torch and numpy: Debian's python3-torch.
"""
import argparse
import copy
import json
import math
import os
import struct
import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

PROJ_HIDDEN, PROJ_DIM, HEAD_HIDDEN = 64, 16, 32
LR, MOMENTUM, WD, HEAD_LR, HEAD_WD, TAU = 0.05, 0.9, 1e-4, 0.5, 0.0, 0.99
PROJECTIONS = 32
# No ReLU input of a case is nearer to zero, in any of its steps: float32 must not fall on the other side. One element that
# does changes a gradient of that layer by 1e-2 to 1e-3 of its norm, in PyTorch too.
MARGIN, DEEP_MARGIN = 2e-5, 2e-6
# Of each case, in the order of all_cases(); chosen by --search for the margin and for tensors that float32 can resolve (a
# gradient that is a small difference of large sums would test rounding, not code).
SALTS = [24, 24, 18, 18, 16, 5, 8, 374, 16, 16, 262, 262, 120, 17, 379, 423, 17, 17,
         45, 50, 74, 119]
SALT = 0         # of the case at hand


# ---- the hash that both sides share --------------------------------------------------------------------------------

def mix(h):
    """MurmurHash3's 32-bit finaliser."""
    h = h.astype(np.uint64)
    h ^= h >> np.uint64(16)
    h = h * np.uint64(0x85EBCA6B) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(13)
    h = h * np.uint64(0xC2B2AE35) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(16)
    return h


def hashes(name, count):
    """hash(name, i) for i < count: FNV-1a of the name, the index mixed in."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 & 0xFFFFFFFF
    index = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B9) + np.uint64(SALT)
    return mix(mix(index & np.uint64(0xFFFFFFFF)) ^ np.uint64(seed))


def uniform(name, shape, offset=0.0, scale=1.0):
    """offset + scale u, u in [-1, 1) with 24 bits, rounded to float32."""
    u = (hashes(name, int(np.prod(shape))) >> np.uint64(8)).astype(np.float64) * 2.0 ** -23 - 1
    return torch.from_numpy((offset + scale * u).astype(np.float32).astype(np.float64).reshape(shape))


def signs(count):
    """(32, count) of +-1 / sqrt(32): bit k of one hash is the sign in projection k."""
    h = hashes("signs", count)
    bits = (h[None] >> np.arange(PROJECTIONS, dtype=np.uint64)[:, None]) & np.uint64(1)
    return (1.0 - 2.0 * bits.astype(np.float64)) / math.sqrt(PROJECTIONS)


def summary(t):
    """(33,): the projections, or the elements of a small tensor padded with zeros; then the norm."""
    x = t.detach().double().reshape(-1).numpy()
    row = np.zeros(PROJECTIONS + 1)
    row[:PROJECTIONS] = signs(x.size) @ x if x.size > PROJECTIONS else np.pad(x, (0, PROJECTIONS - x.size))
    row[PROJECTIONS] = np.linalg.norm(x)
    return row


# ---- the model -----------------------------------------------------------------------------------------------------

class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.downsample = None
        if stride != 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv3, self.bn3 = nn.Conv2d(o, 4 * o, 1, bias=False), nn.BatchNorm2d(4 * o)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.downsample = None
        if stride != 1 or i != 4 * o:
            self.downsample = nn.Sequential(nn.Conv2d(i, 4 * o, 1, stride, bias=False), nn.BatchNorm2d(4 * o))

    def forward(self, x):
        y = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))))
        return self.relu3(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """encoder: resnet18, resnet34, resnet50, with the CIFAR stem, or with -imagenet or -pad2 another one."""

    def __init__(self, encoder, width):
        super().__init__()
        name, _, stem = encoder.partition("-")
        kernel, stride, pad = {"": (3, 1, 1), "pad2": (3, 1, 2), "imagenet": (7, 2, 3)}[stem]
        self.conv1, self.bn1 = nn.Conv2d(3, width, kernel, stride, pad, bias=False), nn.BatchNorm2d(width)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        i = width
        for k, count in enumerate([2, 2, 2, 2] if name == "resnet18" else [3, 4, 6, 3]):
            blocks = []
            for b in range(count):
                blocks.append((Bottleneck if name == "resnet50" else Block)(i, width << k, 2 if k and not b else 1))
                i = (width << k) * (4 if name == "resnet50" else 1)
            setattr(self, f"layer{k + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


class Cnn4(nn.Module):
    class Layer(nn.Module):
        def __init__(self, i, o, stride):
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()

        def forward(self, x):
            return self.relu(self.bn(self.conv(x)))

    def __init__(self, w):
        super().__init__()
        for k, (i, o, stride) in enumerate([(3, w, 1), (w, 2 * w, 2), (2 * w, 2 * w, 1), (2 * w, 4 * w, 2)]):
            setattr(self, f"layer{k}", self.Layer(i, o, stride))

    def forward(self, x):
        return self.layer3(self.layer2(self.layer1(self.layer0(x)))).mean((2, 3))


class Offdiag(nn.Module):
    """p = z + z offdiag(V)^T"""

    def __init__(self, d):
        super().__init__()
        self.V = nn.Parameter(torch.zeros(d, d))

    def forward(self, z):
        return z + z @ (self.V * (1 - torch.eye(len(self.V), dtype=z.dtype))).t()


def make_head(kind):
    d, hidden = PROJ_DIM, HEAD_HIDDEN
    if kind == "none":
        return nn.Identity()
    if kind == "offdiag":
        return Offdiag(d)
    if kind == "linear":
        return nn.Linear(d, d, bias=False)
    return nn.Sequential(nn.Linear(d, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, d))


class Model(nn.Module):
    def __init__(self, case):
        super().__init__()
        encoder = case["encoder"]
        width = case["width"]
        self.backbone = Cnn4(width) if encoder == "cnn4" else ResNet(encoder, width)
        features = width * {"cnn4": 4, "resnet50": 32}.get(encoder.partition("-")[0], 8)
        layers = [nn.Linear(features, PROJ_HIDDEN, bias=False), nn.BatchNorm1d(PROJ_HIDDEN), nn.ReLU(),
                  nn.Linear(PROJ_HIDDEN, PROJ_DIM, bias=False)]
        if case["proj_bn"]:
            layers.append(nn.BatchNorm1d(PROJ_DIM, affine=False))
        self.projector = nn.Sequential(*layers)
        self.predictor = make_head(case["head"])

    def project(self, x):
        return self.projector(self.backbone(x))


def initial(kind, name, t):
    """The starting value of a tensor: kind is value, momentum, stats, target_value or target_stats."""
    key = f"{kind}:{name}"
    if kind == "momentum":
        return uniform(key, t.shape, 0, 0.01)
    if kind.endswith("stats"):
        return uniform(key, t.shape, 1.0 if name.endswith("running_var") else 0.0, 0.1)
    if name == "predictor.V":
        return uniform(key, t.shape, 0, 0.1)
    if name.endswith("bn3.weight"):  # bottlenecks near the identity: with ones a deep net's gradients lose four digits
        return uniform(key, t.shape, 0.2, 0.1)
    if t.dim() == 1:
        return uniform(key, t.shape, 1.0 if name.endswith("weight") else 0.0, 0.1)
    return uniform(key, t.shape, 0, 1.7 / math.sqrt(t.numel() // t.shape[0]))


def stats_of(model):
    return {k: v for k, v in model.named_buffers() if not k.endswith("num_batches_tracked")}


def fill(model, value_kind, stats_kind):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(initial(value_kind, name, p))
        for name, b in stats_of(model).items():
            b.copy_(initial(stats_kind, name, b))


# ---- one step ------------------------------------------------------------------------------------------------------

def half_loss(kind, p, t):
    if kind == "cosine":
        return -F.cosine_similarity(p, t.detach()).mean()
    bn = nn.BatchNorm1d(PROJ_DIM, affine=False, track_running_stats=False)
    return F.mse_loss(bn(p), bn(t.detach()))


def run_case(case, dtype=torch.float64, noise=0.0, least=0.0):
    """The steps' results, {quantity: {tensor: summary}}, their losses, and the least |ReLU input|; nothing where that is below
    `least`. noise: relative changes of every weight, to see how much a rounding error matters."""
    global SALT
    SALT = case["salt"]
    model = Model(case)
    fill(model, "value", "stats")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + noise * torch.randn_like(p))
    target = None
    if case["method"] == "byol":
        target = copy.deepcopy(model)
        target.predictor = nn.Identity()
        fill(target, "target_value", "target_stats")
        target.to(dtype)
    model.to(dtype)
    margins = []
    for m in [*model.modules(), *(target.modules() if target else [])]:
        if isinstance(m, nn.ReLU):
            m.register_forward_pre_hook(lambda _, x: margins.append(x[0].detach().abs().min().item()))
    named = dict(model.named_parameters())
    head = [p for k, p in named.items() if k.startswith("predictor")]
    groups = [{"params": [p for k, p in named.items() if not k.startswith("predictor")]}]
    if head:
        groups.append({"params": head, "lr": HEAD_LR * case["rate"], "weight_decay": HEAD_WD})
    sgd = torch.optim.SGD(groups, LR * case["rate"], momentum=MOMENTUM, weight_decay=WD)
    for name, p in named.items():
        sgd.state[p]["momentum_buffer"] = initial("momentum", name, p).to(dtype)
    out, losses, n = {}, [], case["n"]
    for step in range(case["steps"]):
        views = uniform(f"images:{step}" if step else "images", (2 * n, 3, case["size"], case["size"]), 0, 1.7).to(dtype)
        z1, z2 = model.project(views[:n]), model.project(views[n:])
        p1, p2 = model.predictor(z1), model.predictor(z2)
        t1, t2 = z1, z2
        if target:
            with torch.no_grad():
                t1, t2 = target.project(views[:n]), target.project(views[n:])
        loss = (half_loss(case["loss"], p1, t2) + half_loss(case["loss"], p2, t1)) / 2
        if min(margins) < least:
            return None, None, min(margins)
        losses.append(loss.item())
        sgd.zero_grad()
        loss.backward()
        if step == 0:
            out["grad"] = {k: summary(p.grad) for k, p in named.items()}
        sgd.step()
        if target:
            with torch.no_grad():
                for name, t in target.named_parameters():
                    t.mul_(TAU).add_(named[name], alpha=1 - TAU)
    out["value"] = {k: summary(p) for k, p in named.items()}
    out["momentum"] = {k: summary(sgd.state[p]["momentum_buffer"]) for k, p in named.items()}
    out["stats"] = {k: summary(b) for k, b in stats_of(model).items()}
    if target:
        out["target_value"] = {k: summary(p) for k, p in target.named_parameters()}
        out["target_stats"] = {k: summary(b) for k, b in stats_of(target).items()}
    margin = min(margins)
    with torch.no_grad():
        model.eval()
        features = model.backbone(views)
        out["eval"] = {"features": summary(features), "projections": summary(model.projector(features))}
    return out, losses, margin


def all_cases():
    cases = []
    for m, method in enumerate(["simsiam", "byol"]):
        for h, head in enumerate(["none", "offdiag", "linear", "mlp"]):
            for k, loss in enumerate(["cosine", "normalized"]):
                cases.append({"encoder": "resnet18", "method": method, "head": head, "loss": loss,
                              "proj_bn": (m + h + k) % 2 == 0})
    cases.append({"encoder": "cnn4", "method": "simsiam", "head": "offdiag", "loss": "normalized", "proj_bn": True})
    cases.append({"encoder": "cnn4", "method": "byol", "head": "mlp", "loss": "cosine", "proj_bn": False})
    for encoder in ["resnet18-imagenet", "resnet18-pad2"]:
        cases.append({"encoder": encoder, "method": "byol", "head": "offdiag", "loss": "normalized", "proj_bn": True})
    # Three steps at STL-10's size and with the deepest encoder, with as few elements as will do (see DEEP_MARGIN), and at
    # a rate at which rounding errors do not grow: at LR they grow a hundredfold a step, in PyTorch too.
    for encoder, n, size in [("resnet18-imagenet", 6, 96), ("resnet50", 8, 10)]:
        cases.append({"encoder": encoder, "method": "simsiam", "head": "offdiag", "loss": "normalized", "proj_bn": True,
                      "n": n, "size": size, "steps": 3, "rate": 0.02, "margin": DEEP_MARGIN})
    for c, salt in zip(cases, SALTS):
        for key, value in dict(n=6, size=16, steps=1, rate=1.0, margin=MARGIN, width=8 if c["encoder"] == "cnn4" else 4).items():
            c.setdefault(key, value)
        c["name"] = ".".join(c[k] for k in ("encoder", "method", "head", "loss"))
        c["salt"] = salt
    return cases


# ---- the file ------------------------------------------------------------------------------------------------------

def save(path, tensors, metadata):
    """A safetensors file: by alignment, then name; header padded to a multiple of 8."""
    kinds = {np.dtype("float64"): "F64", np.dtype("float32"): "F32"}
    header, data = {"__metadata__": metadata}, b""
    for name, a in sorted(tensors.items(), key=lambda kv: (-kv[1].itemsize, kv[0])):
        header[name] = {"dtype": kinds[a.dtype], "shape": list(a.shape), "data_offsets": [len(data), len(data) + a.nbytes]}
        data += a.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def error(a, b):
    """The test's measure: difference of two summaries, relative to the norm."""
    return np.linalg.norm((a - b)[:PROJECTIONS]) / b[PROJECTIONS]


def worst(a, b):
    """The largest error, where the golden tensor is not zero, and the largest norm where it is."""
    rows = [(error(a[q][k], b[q][k]), q, k) for q in b for k in b[q] if b[q][k][PROJECTIONS] > 1e-9]
    zero = [(a[q][k][PROJECTIONS], q, k) for q in b for k in b[q] if b[q][k][PROJECTIONS] <= 1e-9]
    return max(rows), max(zero, default=(0.0, "", ""))


def check(cases):
    for c in cases:
        (a, la, _), (b, lb, margin) = run_case(c, torch.float32), run_case(c)
        row, zero = worst(a, b)
        off = max(abs(x - y) for x, y in zip(la, lb))
        print(f"{c['name']:38s} loss {lb[-1]:+.5f} error {off:.1e} margin {margin:.1e} largest %.1e %s %s" % row,
              "zero: %.1e %s %s" % zero if zero[1] else "")


def search(cases):
    """For each case, of the first salts that keep the margin, the one that suffers least from rounding."""
    salts = []
    for c in cases:
        found = []
        for c["salt"] in range(1, 2000):
            golden, _, _ = run_case(c, least=c["margin"])
            if golden:
                runs = [run_case(c, torch.float32, noise) for noise in (0, 6e-8, 6e-8, 6e-8)]
                found.append((max(worst(a, golden)[0][0] for a, _, _ in runs), c["salt"]))
            if len(found) == (10 if c["steps"] == 1 else 3):
                break
        salts.append(min(found)[1])
        print(f"{c['name']}: salt {salts[-1]} of {c['salt']}, error %.1e, the worst had %.1e" % (min(found)[0], max(found)[0]),
              flush=True)
    print(f"SALTS = {salts}")


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=os.path.join(root, "tests/golden/step.safetensors"))
    p.add_argument("--check", action="store_true", help="compare float32 with double, write nothing")
    p.add_argument("--search", nargs="*", metavar="CASE", help="look for salts (of the cases named), write nothing")
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    cases = all_cases()
    if a.check:
        return check(cases)
    if a.search is not None:
        return search([c for c in cases if not a.search or c["name"] in a.search])
    tensors, metadata = {}, {"cases": " ".join(c["name"] + ("+bn" if c["proj_bn"] else "") for c in cases),
                             "made_by": f"tools/make_golden.py, torch {torch.__version__}"}
    for c in cases:
        out, losses, margin = run_case(c)
        if margin < c["margin"]:
            sys.exit(f"{c['name']}: a ReLU input of {margin:.1e}: look for another salt with --search")
        tensors[c["name"] + "/loss"] = np.array(losses)
        for quantity, rows in out.items():
            tensors[f"{c['name']}/{quantity}"] = np.stack(list(rows.values())).astype(np.float32)
        metadata[c["name"] + ".salt"] = str(c["salt"])
        metadata[c["name"] + ".sizes"] = " ".join(str(c[k]) for k in ("n", "size", "width", "steps", "rate"))
        metadata[c["name"] + ".params"] = " ".join(out["grad"])
        metadata[c["name"] + ".stats"] = " ".join(out["stats"])
    os.makedirs(os.path.dirname(a.out), exist_ok=True)
    save(a.out, tensors, metadata)
    print(f"{a.out}: {len(cases)} cases, {os.path.getsize(a.out)} bytes")


if __name__ == "__main__":
    main()
