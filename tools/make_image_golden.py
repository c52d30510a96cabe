#!/usr/bin/python3
"""Write tests/golden/images.safetensors: picture files, and what torchvision makes of them on Pillow.

  make_image_golden.py [OUT]

Case i has i.file (bytes), i.out (side, side, 3) uint8 = CenterCrop(side)(Resize(side)(file)), and its name in the
metadata. Needs torchvision and Pillow (Debian: python3-torchvision, python3-pil).
"""
import io
import json
import os
import struct
import sys

import numpy as np
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

# name, format, mode, (h, w), side, how it is saved
CASES = [
    ("rgb", "PNG", "RGB", (40, 61), 24, {}),
    ("tall", "PNG", "RGB", (97, 33), 24, {}),
    ("same", "PNG", "RGB", (24, 24), 24, {}),
    ("larger", "PNG", "RGB", (9, 13), 24, {}),
    ("grey", "PNG", "L", (35, 30), 16, {}),
    ("palette", "PNG", "P", (35, 50), 16, {}),
    ("alpha", "PNG", "RGBA", (35, 50), 16, {}),
    ("bits", "PNG", "1", (35, 50), 16, {}),
    ("jpeg", "JPEG", "RGB", (50, 45), 24, dict(quality=90)),
    ("jpeg-444", "JPEG", "RGB", (37, 45), 24, dict(quality=95, subsampling=0)),
    ("jpeg-progressive", "JPEG", "RGB", (37, 61), 24, dict(quality=90, progressive=True)),
    ("jpeg-grey", "JPEG", "L", (50, 45), 24, dict(quality=90)),
    ("jpeg-cmyk", "JPEG", "CMYK", (50, 45), 24, dict(quality=90)),
]


def picture(index, h, w):
    """Smooth, with a hard edge."""
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    planes = [127 + 110 * np.sin(7 * (k + 1) * x + 9 * y * (index % 3 - k)) for k in range(3)]
    out = np.stack(planes, -1)
    out[h // 3 : h // 2, w // 4 : w // 2] = [250, 10, 60]
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "..", "tests", "golden", "images.safetensors")
    header, data, names = {}, b"", []
    for i, (name, kind, mode, (h, w), side, how) in enumerate(CASES):
        image = picture(i, h, w)
        if mode == "RGBA":
            image.putalpha(Image.fromarray((np.arange(h * w).reshape(h, w) % 256).astype(np.uint8)))
        file = io.BytesIO()
        image.convert(mode).save(file, kind, **how)
        opened = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
        steps = transforms.Compose([transforms.Resize(side, InterpolationMode.BILINEAR), transforms.CenterCrop(side)])
        for key, bytes_, shape in (("file", file.getvalue(), [len(file.getvalue())]),
                                   ("out", np.asarray(steps(opened)).tobytes(), [side, side, 3])):
            header["%d.%s" % (i, key)] = {"dtype": "U8", "shape": shape, "data_offsets": [len(data), len(data) + len(bytes_)]}
            data += bytes_
        names.append(name)
    header["__metadata__"] = {"names": ",".join(names)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


if __name__ == "__main__":
    main()
