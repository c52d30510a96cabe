#!/usr/bin/python3
"""Train a linear classifier on embedded features in PyTorch, and compare its accuracy with `offdiag eval --protocol linear`.

  offdiag embed RUN --split train --out train.npy --labels train-labels.npy
  offdiag embed RUN --out test.npy --labels test-labels.npy
  offdiag eval RUN --protocol linear --json > eval.json
  check_probe.py eval.json train.npy train-labels.npy test.npy test-labels.npy [--tolerance 0.5] [--seeds 3]

The same protocol: the features as they are, a linear layer with bias from zero, cross-entropy, SGD with momentum 0.9, batches
of 256, cosine to 0, no weight decay; epochs and learning rate are those that eval names. Only the order of the images is
torch's own. Exit code 1: the mean over the seeds is more than --tolerance points away; 77: no torch here (Debian's
python3-torch).
"""
import argparse
import json
import math
import sys

import numpy as np

try:
    import torch
    from torch.nn import functional as F
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

BATCH, MOMENTUM = 256, 0.9


def read(features, labels):
    x, y = np.load(features, allow_pickle=False), np.load(labels, allow_pickle=False)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        sys.exit(f"{features}, {labels}: shapes {x.shape} and {y.shape}: expected (n, F) and (n)")
    return torch.from_numpy(x).float(), torch.from_numpy(y).long()


def probe(train, test, epochs, lr, seed):
    """Accuracy on the test features, 0..1."""
    x, y = train
    torch.manual_seed(seed)
    layer = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    for p in layer.parameters():
        torch.nn.init.zeros_(p)
    sgd = torch.optim.SGD(layer.parameters(), lr, momentum=MOMENTUM)
    total, step = epochs * math.ceil(len(x) / BATCH), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            sgd.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / total))
            sgd.zero_grad()
            F.cross_entropy(layer(x[rows]), y[rows]).backward()
            sgd.step()
            step += 1
    with torch.no_grad():
        return (layer(test[0]).argmax(1) == test[1]).float().mean().item()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("eval", "train", "train_labels", "test", "test_labels"):
        p.add_argument(name)
    p.add_argument("--tolerance", type=float, default=0.5, help="points (0.5)")
    p.add_argument("--seeds", type=int, default=3)
    a = p.parse_args()
    torch.set_num_threads(1)
    with open(a.eval, encoding="utf-8") as f:
        ours = json.load(f)
    if ours["protocol"] != "linear" or ours["folds"]:
        sys.exit(f"{a.eval}: not of eval --protocol linear without --folds")
    train, test = read(a.train, a.train_labels), read(a.test, a.test_labels)
    if (len(train[0]), len(test[0])) != (ours["bank"], ours["queries"]):
        sys.exit(f"eval took {ours['bank']} training and {ours['queries']} test images, not {len(train[0])} and {len(test[0])}")
    theirs = [100 * probe(train, test, ours["epochs"], ours["lr"], seed) for seed in range(a.seeds)]
    spread = f", standard deviation {np.std(theirs, ddof=1):.2f}" if a.seeds > 1 else ""
    print(f"linear, {ours['epochs']} epochs, lr {ours['lr']:g}: offdiag {100 * ours['accuracy']:.2f} %, "
          f"torch {np.mean(theirs):.2f} % (mean of {a.seeds}{spread})")
    if not abs(np.mean(theirs) - 100 * ours["accuracy"]) <= a.tolerance:
        sys.exit(f"over the tolerance of {a.tolerance:g} points")


if __name__ == "__main__":
    main()
