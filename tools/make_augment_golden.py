#!/usr/bin/python3
"""Write tests/golden/augment.safetensors: views that torchvision makes from fixed parameters.

  make_augment_golden.py [OUT]

Case i has i.image (h, w, c) uint8, i.params (17) float32 in the order of od_augment_params, i.view (S, S, 3) float32,
normalised with MEAN and STD. Needs torch and torchvision (Debian: python3-torch, python3-torchvision).
"""
import json
import os
import struct
import sys

import numpy as np
import torch
import torchvision.transforms.functional as F
from torchvision.transforms import InterpolationMode

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
THRESHOLD = 0.5

# h, w, c, S, then what differs from "nothing happens".
CASES = [
    (32, 32, 3, 32, {}),
    (20, 24, 3, 16, dict(crop=(3, 5, 7, 11))),
    (32, 32, 3, 12, {}),
    (32, 30, 3, 16, dict(crop=(2, 9, 27, 13), flip=1)),
    (16, 16, 3, 16, dict(order=(0, 1, 2, 3), brightness=1.39)),
    (16, 16, 3, 16, dict(order=(0, 1, 2, 3), contrast=0.61)),
    (16, 16, 3, 16, dict(order=(0, 1, 2, 3), saturation=1.4)),
    (16, 16, 3, 16, dict(order=(0, 1, 2, 3), hue=0.1)),
    (16, 16, 3, 16, dict(order=(0, 1, 2, 3), hue=-0.47)),
    (17, 19, 3, 18, dict(crop=(1, 2, 15, 14), order=(3, 1, 0, 2), brightness=0.7, contrast=1.3, saturation=0.6, hue=-0.08)),
    (17, 19, 3, 18, dict(order=(2, 0, 3, 1), brightness=1.3, contrast=0.7, saturation=1.2, hue=0.09, grey=1)),
    (20, 20, 3, 20, dict(sigma=1.3)),
    (12, 12, 1, 40, dict(crop=(1, 0, 9, 11), sigma=0.8)),
    (16, 16, 3, 16, dict(solarize=1)),
    (28, 28, 1, 28, dict(crop=(4, 3, 20, 22), order=(1, 0, 3, 2), brightness=0.8, contrast=1.4, hue=0.1, flip=1)),
    (48, 44, 3, 24, dict(crop=(3, 1, 44, 37), order=(1, 3, 2, 0), brightness=1.2, contrast=1.2, saturation=0.8, hue=0.05,
                         sigma=1.9, solarize=1, flip=1)),
    (40, 60, 3, 41, dict(crop=(0, 7, 40, 51), order=(1, 2, 0, 3), contrast=0.8, saturation=1.3, sigma=0.4)),
]


def image(index, h, w, c):
    """Smooth shapes, hard edges and noise, with black, white and saturated pixels."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    planes = [127 + 120 * np.sin(6 * (k + 1) * x + 9 * y * (index % 3 - k)) + 25 * rng.standard_normal((h, w)) for k in range(c)]
    out = np.stack(planes, -1)
    out[h // 3 : h // 2, w // 4 : w // 2] = [255, 0, 60][:c]
    out[: h // 5, : w // 5] = 0
    return np.clip(out, 0, 255).astype(np.uint8)


def view(pixels, size, p):
    h, w, _ = pixels.shape
    x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    x = x.expand(3, h, w)
    top, left, height, width = p.get("crop", (0, 0, h, w))
    x = F.crop(x, top, left, height, width)
    x = F.resize(x, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    adjust = [(F.adjust_brightness, "brightness"), (F.adjust_contrast, "contrast"), (F.adjust_saturation, "saturation"),
              (F.adjust_hue, "hue")]
    for part in p.get("order", ()):
        function, name = adjust[part]
        if name in p:
            x = function(x, p[name])
    if p.get("grey"):
        x = F.rgb_to_grayscale(x, 3)
    if p.get("sigma"):
        kernel = max(3, 2 * (size // 20) + 1)
        x = F.gaussian_blur(x, [kernel, kernel], [p["sigma"], p["sigma"]])
    if p.get("solarize"):
        x = F.solarize(x, THRESHOLD)
    if p.get("flip"):
        x = F.hflip(x)
    return F.normalize(x, MEAN, STD).permute(1, 2, 0).contiguous().numpy()


def params(h, w, p):
    order = p.get("order", (0, 1, 2, 3))
    return np.array([*p.get("crop", (0, 0, h, w)), p.get("brightness", 1), p.get("contrast", 1), p.get("saturation", 1),
                     p.get("hue", 0), "order" in p, *order, p.get("grey", 0), p.get("flip", 0), p.get("solarize", 0),
                     p.get("sigma", 0)], np.float32)


def write_safetensors(path, tensors):
    names = sorted(tensors, key=lambda n: (-tensors[n].itemsize, n))
    header, offset = {}, 0
    for name in names:
        t = tensors[name]
        header[name] = {"dtype": {"float32": "F32", "uint8": "U8"}[t.dtype.name], "shape": list(t.shape),
                        "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(tensors[n].tobytes() for n in names))


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "..", "tests", "golden", "augment.safetensors")
    tensors = {}
    for i, (h, w, c, size, p) in enumerate(CASES):
        pixels = image(i, h, w, c)
        tensors[f"{i}.image"] = pixels
        tensors[f"{i}.params"] = params(h, w, p)
        tensors[f"{i}.view"] = view(pixels, size, p)
    write_safetensors(out, tensors)


if __name__ == "__main__":
    main()
