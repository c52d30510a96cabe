#!/usr/bin/env python3
"""The study of heads in PyTorch: what `offdiag study heads --preset study-cnn4` runs, written anew, to compare with.

  torch_study.py --data DIR [--heads none,offdiag,linear,mlp] [--seeds 3] [--out FILE.jsonl]
  torch_study.py --data DIR --method byol        the preset study-cnn4-byol
  torch_study.py --data DIR --steps 6000 --heads offdiag
  torch_study.py --check                         its augmentation against tests/golden/augment.safetensors

DIR holds cifar-10-batches-bin. A run that FILE has already is not run again, so a study can be stopped and gone on with.
At the end: a row for each head, mean and standard deviation over the seeds.

The same as in offdiag: the first 20,000 training images averaged to 16x16 in bytes; views by random resized crop (area 0.2 to
1, bicubic, antialiased), flip, colour jitter (0.4, 0.4, 0.4, 0.1 with probability 0.8, in random order), grey (0.2); four
convolutions of 32, 64 (stride 2), 64, 128 (stride 2) channels, projector 128 -> 256 BN ReLU -> 64 BN without affine; outputs
of head and target batch-normalised, mean squared error, both ways; SGD 0.05, momentum 0.9, cosine, warm-up 100 steps, weight
decay 5e-4 but for the head, whose rate is 10 times as large and constant; kNN on 10,000 and 2,000 images, k 200, T 0.1;
effective rank of the 128 projections of the last step's first views. Other random numbers, of course. Needs torch and numpy:
exit code 77 without them.
"""
import argparse
import copy
import json
import math
import os
import sys
import time

import numpy as np

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

SIDE, BATCH, DIM, HIDDEN = 16, 128, 64, 256
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)
GREY = torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)
HEADS = ["none", "offdiag", "linear", "mlp"]
BANK, QUERIES, K, TEMPERATURE = 10000, 2000, 200, 0.1


# ---- data ----------------------------------------------------------------------------------------------------------

def load(folder, files, count):
    """The first `count` images, (n, 3, 16, 16) uint8, averaged by 2 with rounding, and their labels (n)."""
    rows = np.concatenate([np.fromfile(os.path.join(folder, "cifar-10-batches-bin", f), np.uint8).reshape(-1, 3073)
                           for f in files])[:count]
    x = rows[:, 1:].reshape(-1, 3, SIDE, 2, SIDE, 2).astype(np.uint16)
    return torch.from_numpy(((x.sum((3, 5)) + 2) // 4).astype(np.uint8)), torch.from_numpy(rows[:, 0].astype(np.int64))


# ---- augmentation, a batch at a time ---------------------------------------------------------------------------------

def draw_crops(rng, n, h, w):
    """RandomResizedCrop's (top, left, height, width), each (n): the first of ten tries that fits, else the middle."""
    area = h * w * rng.uniform(0.2, 1, (10, n))
    ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), (10, n)))
    cw, ch = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
    fits = (cw > 0) & (cw <= w) & (ch > 0) & (ch <= h)
    first, any_fits = fits.argmax(0), fits.any(0)
    height = np.where(any_fits, ch[first, np.arange(n)], h)  # square images: the middle is the whole
    width = np.where(any_fits, cw[first, np.arange(n)], w)
    top = np.floor(rng.uniform(size=n) * (h - height + 1)).astype(int)
    left = np.floor(rng.uniform(size=n) * (w - width + 1)).astype(int)
    return top, left, height, width


def resize_weights(first, length, size, out):
    """(n, out, size): each output pixel as a sum of input pixels of first..first+length-1; Keys' cubic, a = -0.5, wider
    where the crop shrinks."""
    first, length = (torch.as_tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (first, length))
    scale = length / out
    at = torch.arange(size, dtype=torch.float32).view(1, 1, -1)
    x = ((at + 0.5 - first - scale * (torch.arange(out).view(1, -1, 1) + 0.5)) / scale.clamp(min=1)).abs()
    weight = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weight = weight * ((x < 2) & (at >= first) & (at < first + length))
    return weight / weight.sum(2, keepdim=True)


def crop(x, crops, out):
    """x (n, 3, h, w) in 0..1 -> (n, 3, out, out)."""
    top, left, height, width = crops
    down = resize_weights(top, height, x.shape[2], out).unsqueeze(1)
    across = resize_weights(left, width, x.shape[3], out).unsqueeze(1)
    return (down @ x @ across.transpose(2, 3)).clamp(0, 1)


def grey(x):
    return (x * GREY).sum(1, keepdim=True)


def blend(x, other, factor):
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def turn_hue(x, turns):
    """Through HSV; turns (n, 1, 1, 1)."""
    r, g, b = x.split(1, 1)
    value, chroma = x.amax(1, keepdim=True), x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(value == r, (g - b) / divisor, torch.where(value == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor))
    k = (torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1) + 6 * ((hue / 6 + turns) % 1)) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


ADJUST = [lambda x, f: (x * f).clamp(0, 1),
          lambda x, f: blend(x, grey(x).mean((2, 3), keepdim=True), f),
          lambda x, f: blend(x, grey(x), f),
          turn_hue]


def jitter(x, factors, order, rows):
    """The four adjustments on the images `rows`, each image in its own order; factors (n, 4), order (n, 4)."""
    for position in range(4):
        for part, adjust in enumerate(ADJUST):
            at = rows[order[rows, position] == part]
            if len(at):
                x[at] = adjust(x[at], torch.from_numpy(factors[at, part]).float().view(-1, 1, 1, 1))
    return x


def augment(rng, images):
    """One view of each image, (n, 3, 16, 16) uint8 -> float, normalised."""
    n, _, h, w = images.shape
    x = crop(images.float() / 255, draw_crops(rng, n, h, w), SIDE)
    factors = np.concatenate([rng.uniform(0.6, 1.4, (n, 3)), rng.uniform(-0.1, 0.1, (n, 1))], 1)
    order = rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1)
    x = jitter(x, factors, order, np.flatnonzero(rng.uniform(size=n) < 0.8))
    x = torch.where(torch.from_numpy(rng.uniform(size=n) < 0.2).view(-1, 1, 1, 1), grey(x), x)
    x = torch.where(torch.from_numpy(rng.uniform(size=n) < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
    return (x - MEAN) / STD


# ---- the model -------------------------------------------------------------------------------------------------------

def convolution(i, o, stride):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Offdiag(nn.Module):
    """p = z + z offdiag(V)^T, V = 0 at the start"""

    def __init__(self):
        super().__init__()
        self.V = nn.Parameter(torch.zeros(DIM, DIM))

    def forward(self, z):
        return z + z @ offdiag(self.V).t()


def offdiag(m):
    return m * (1 - torch.eye(len(m)))


def make_head(name):
    if name == "none":
        return nn.Identity()
    if name == "offdiag":
        return Offdiag()
    if name == "linear":
        return nn.Linear(DIM, DIM, bias=False)
    return nn.Sequential(nn.Linear(DIM, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))


class Branch(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.encoder = nn.Sequential(convolution(3, w, 1), convolution(w, 2 * w, 2), convolution(2 * w, 2 * w, 1),
                                     convolution(2 * w, 4 * w, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projector = nn.Sequential(nn.Linear(4 * w, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(),
                                       nn.Linear(256, DIM, bias=False), nn.BatchNorm1d(DIM, affine=False))

    def forward(self, x):
        return self.projector(self.encoder(x))


def loss_between(p, target):
    return F.mse_loss(F.batch_norm(p, None, None, training=True), F.batch_norm(target, None, None, training=True))


# ---- measures --------------------------------------------------------------------------------------------------------

def features(encoder, images):
    encoder.eval()
    with torch.no_grad():
        f = torch.cat([encoder((x.float() / 255 - MEAN) / STD) for x in images.split(500)])
    encoder.train()
    return f


def knn(encoder, bank, bank_labels, queries, query_labels):
    similarity = F.normalize(features(encoder, queries)) @ F.normalize(features(encoder, bank)).t()
    nearest, at = similarity.topk(K, 1)
    votes = torch.zeros(len(queries), 10).scatter_add_(1, bank_labels[at], (nearest / TEMPERATURE).exp())
    return (votes.argmax(1) == query_labels).float().mean().item()


def effective_rank(z):
    s = torch.linalg.svdvals(z.double() - z.double().mean(0))
    p = s / s.sum()
    return math.exp(-torch.special.xlogy(p, p).sum().item())


def head_size(head):
    matrix = head.V if isinstance(head, Offdiag) else head.weight if isinstance(head, nn.Linear) else None
    return None if matrix is None else offdiag(matrix.detach()).norm().item()


# ---- a run -----------------------------------------------------------------------------------------------------------

def run(args, data, name, seed):
    (train, train_labels), (test, test_labels) = data
    bank, labels = train[:BANK], train_labels[:BANK]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net, head = Branch(args.width), make_head(name)
    target = copy.deepcopy(net) if args.method == "byol" else net
    groups = [{"params": list(net.parameters()), "weight_decay": 5e-4}]
    if list(head.parameters()):
        groups.append({"params": list(head.parameters()), "weight_decay": 0.0})
    sgd = torch.optim.SGD(groups, 0.05, momentum=0.9)
    result = {"method": args.method, "head": name, "seed": seed, "steps": args.steps, "width": args.width, "torch": torch.__version__,
              "knn_before": knn(net.encoder, bank, labels, test, test_labels), "sizes": []}
    began, per_epoch, size = time.time(), len(train) // BATCH, head_size(head)
    for step in range(args.steps):
        if step % per_epoch == 0:
            order = torch.from_numpy(rng.permutation(len(train)))
        images = train[order[step % per_epoch * BATCH:][:BATCH]]
        views = augment(rng, torch.cat([images, images])).split(BATCH)
        cosine, ramp = 0.5 * (1 + math.cos(math.pi * step / args.steps)), min(1, (step + 1) / 100)
        for group, factor in zip(sgd.param_groups, (cosine, 10)):
            group["lr"] = 0.05 * ramp * factor
        z = [net(v) for v in views]
        with torch.no_grad():
            t = [target(v) for v in views] if target is not net else [x.detach() for x in z]
        loss = (loss_between(head(z[0]), t[1]) + loss_between(head(z[1]), t[0])) / 2
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        if target is not net:
            tau = 1 - (1 - 0.99) * cosine
            with torch.no_grad():
                for p, q in zip(target.parameters(), net.parameters()):
                    p.mul_(tau).add_(q, alpha=1 - tau)
        if (step + 1) % per_epoch == 0 or step + 1 == args.steps:
            size = head_size(head)
            result["sizes"].append(size and round(size, 4))
            print(f"\r{name} seed {seed} step {step + 1} loss {loss.item():.4f} rank {effective_rank(z[0].detach()):.1f}",
                  end="", file=sys.stderr)
    print(file=sys.stderr)
    result.update(knn=knn(net.encoder, bank, labels, test, test_labels), effective_rank=effective_rank(z[0].detach()),
                  loss=loss.item(), offdiag_end=size, seconds=round(time.time() - began, 1),
                  offdiag_peak=max(result["sizes"]) if size is not None else None)
    return result


def table(results, heads):
    def cell(name, key, factor, digits):
        values = [factor * r[key] for r in results if r["head"] == name and r[key] is not None]
        if not values:
            return "-"
        spread = f" \u00b1 {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"
    print(f"{'head':9}{'runs':6}{'kNN before, %':17}{'kNN, %':17}{'effective rank':17}{'|offdiag| peak':17}|offdiag| end")
    for name in heads:
        runs = sum(r["head"] == name for r in results)
        print(f"{name:9}{runs:<6}{cell(name, 'knn_before', 100, 2):17}{cell(name, 'knn', 100, 2):17}"
              f"{cell(name, 'effective_rank', 1, 1):17}{cell(name, 'offdiag_peak', 1, 3):17}{cell(name, 'offdiag_end', 1, 3)}")


# ---- the augmentation's check ------------------------------------------------------------------------------------------

def check():
    """Largest difference from torchvision's views with fixed parameters, over the cases without blur and solarising."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden", "augment.safetensors")
    with open(path, "rb") as f:
        raw = f.read()
    length = int.from_bytes(raw[:8], "little")
    tensors = {k: np.frombuffer(raw[8 + length:][v["data_offsets"][0]:v["data_offsets"][1]],
                                {"F32": np.float32, "U8": np.uint8}[v["dtype"]]).reshape(v["shape"])
               for k, v in json.loads(raw[8:8 + length]).items() if k != "__metadata__"}
    worst = compared = 0
    for case in {k.split(".")[0] for k in tensors}:
        top, left, height, width, *factors, on, o0, o1, o2, o3, is_grey, flip, solarize, sigma = tensors[case + ".params"]
        image, view = tensors[case + ".image"], torch.tensor(tensors[case + ".view"]).permute(2, 0, 1)[None]
        if solarize or sigma or image.shape[2] != 3:
            continue
        x = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
        x = crop(x, ([top], [left], [height], [width]), view.shape[2])
        x = jitter(x, np.array([factors]), np.array([[o0, o1, o2, o3]]), np.arange(int(on)))
        x = grey(x).expand_as(x) if is_grey else x
        x = x.flip(3) if flip else x
        worst = max(worst, (x - (view * STD + MEAN)).abs().max().item())
        compared += 1
    print(f"{compared} views: largest difference from torchvision's {worst:.1e} of 1")
    return 0 if compared > 8 and worst < 1e-4 else 1


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", help="the folder that holds cifar-10-batches-bin")
    p.add_argument("--heads", default=",".join(HEADS))
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--limit", type=int, default=20000, help="training images")
    p.add_argument("--width", type=int, default=32, help="channels of the first convolution")
    p.add_argument("--method", choices=["simsiam", "byol"], default="simsiam")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", help="keep results there, a JSON line a run")
    p.add_argument("--check", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    if args.check:
        return check()
    heads = args.heads.split(",")
    if not args.data or not set(heads) <= set(HEADS):
        p.error(f"needs --data DIR, and --heads of {', '.join(HEADS)}")
    data = (load(args.data, [f"data_batch_{i}.bin" for i in range(1, 6)], args.limit),
            load(args.data, ["test_batch.bin"], QUERIES))
    results = []
    if args.out and os.path.exists(args.out):
        with open(args.out) as f:
            results = [json.loads(line) for line in f]
        results = [r for r in results if all(r[k] == getattr(args, k) for k in ("method", "steps", "width"))]
    for seed in range(args.seeds):
        for name in heads:
            if any((r["head"], r["seed"]) == (name, seed) for r in results):
                continue
            results.append(run(args, data, name, seed))
            if args.out:
                with open(args.out, "a") as f:
                    f.write(json.dumps(results[-1]) + "\n")
    table([r for r in results if r["seed"] < args.seeds], heads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
