#!/usr/bin/python3
"""Check an exported encoder against torchvision: strict key checking, and the same features.

  check_export.py EXPORT.safetensors IMAGES.npy FEATURES.npy [--tolerance 1e-4]

The file is loaded with strict=True into torchvision's resnet18, resnet34 or resnet50, as its metadata says; with the CIFAR
stems conv1 is 3x3 with stride 1 (padding 1; cifar-pad2: 2) and max-pool the identity, fc is the identity, every stage is
scaled where the width is not 64. IMAGES holds the encoder's inputs, float32, already normalised: (n, 3, S, S), or (n, S, S,
3 or 4) whose fourth channel is padding. FEATURES (n, F) are ours. Torch computes in double precision; the largest relative
error of a row, |ours - torch| / |torch|, is printed. Exit code 1: keys or shapes differ, or the error passes the tolerance;
77: no torch or torchvision here (Debian's python3-torch and python3-torchvision).
"""
import argparse
import json
import struct
import sys

import numpy as np

try:
    import torch
    import torch.nn as nn
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1"}


def read_safetensors(path):
    """{name: array} and the metadata, read with struct and json only."""
    with open(path, "rb") as f:
        raw = f.read()
    length, = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8:8 + length])
    data, metadata, tensors = raw[8 + length:], header.pop("__metadata__", {}), {}
    for name, t in header.items():
        begin, end = t["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], DTYPES[t["dtype"]]).reshape(t["shape"])
    if sum(t.nbytes for t in tensors.values()) != len(data):
        sys.exit(f"{path}: {len(data)} bytes of data, {sum(t.nbytes for t in tensors.values())} in tensors")
    return tensors, metadata


ENCODERS = {"resnet18": (BasicBlock, [2, 2, 2, 2]), "resnet34": (BasicBlock, [3, 4, 6, 3]),
            "resnet50": (Bottleneck, [3, 4, 6, 3])}


class Encoder(ResNet):
    """torchvision's ResNet without classifier, with `width` channels in its first stage and one of our stems."""

    def __init__(self, name, stem, width):
        self.width = width
        super().__init__(*ENCODERS[name])
        kernel, stride, padding = {"cifar": (3, 1, 1), "cifar-pad2": (3, 1, 2), "imagenet": (7, 2, 3)}[stem]
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        if stem != "imagenet":
            self.maxpool = nn.Identity()
        self.fc = nn.Identity()

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:
            self.inplanes = self.width
        return super()._make_layer(block, planes * self.width // 64, blocks, stride, dilate)


def as_nchw(images):
    if images.ndim != 4 or 3 not in images.shape[1:] and images.shape[3] != 4:
        sys.exit(f"images of shape {images.shape}: expected (n, 3, S, S) or (n, S, S, 3 or 4)")
    return images if images.shape[1] == 3 else images[..., :3].transpose(0, 3, 1, 2)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("export")
    p.add_argument("images")
    p.add_argument("features")
    p.add_argument("--tolerance", type=float, default=1e-4)
    a = p.parse_args()

    tensors, metadata = read_safetensors(a.export)
    name, stem = metadata.get("encoder"), metadata.get("stem", "cifar")
    if name not in ENCODERS or "conv1.weight" not in tensors:
        sys.exit(f"{a.export}: encoder {name}: torchvision has none like it")
    width = tensors["conv1.weight"].shape[0]
    net = Encoder(name, stem, width)
    try:
        net.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in tensors.items()}, strict=True)
    except RuntimeError as e:
        sys.exit(f"{a.export}: {e}")
    print(f"{a.export}: {name}, stem {stem}, width {width}, {len(tensors)} tensors: every key and shape is torchvision's")

    images = as_nchw(np.load(a.images, allow_pickle=False)).astype(np.float64)
    ours = np.load(a.features, allow_pickle=False).astype(np.float64)
    with torch.no_grad():
        net.double().eval()
        theirs = torch.cat([net(x) for x in torch.from_numpy(np.ascontiguousarray(images)).split(64)]).numpy()
    if ours.shape != theirs.shape:
        sys.exit(f"{a.features}: shape {ours.shape}, torch gives {theirs.shape}")
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    print(f"{len(ours)} images: largest relative error of a feature vector {error.max():.2e}, mean {error.mean():.2e}")
    if not error.max() <= a.tolerance:  # NaN fails too
        sys.exit(f"over the tolerance of {a.tolerance:g}")


if __name__ == "__main__":
    main()
