#!/usr/bin/env python3
"""tinygrad's training step on its OpenCL backend, the same as that of `offdiag bench step` (see torch_step.py), with
tinygrad's own layers, optimiser and TinyJit. Prints one JSON document. Usually run by tools/bench_peers.

The first steps compile for minutes on a CPU device. tinygrad takes a device of the first OpenCL platform.
"""
import os

os.environ["DEV"] = "CL"  # the OpenCL backend; read when tinygrad is imported

import measure
from importlib.metadata import version
from tinygrad import Device, Tensor, TinyJit, nn
from tinygrad.helpers import Context


class Block:
    def __init__(self, c_in, c_out, stride):
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm(c_out)
        self.downsample = []
        if stride != 1 or c_in != c_out:
            self.downsample = [nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm(c_out)]

    def __call__(self, x):
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + x.sequential(self.downsample)).relu()


class Network:
    """ResNet-18, projector and head; returns z and p."""

    def __init__(self, width):
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm(width)
        self.blocks, c_in = [], width
        for stage, stride in enumerate([1, 2, 2, 2]):
            c_out = width * 2**stage
            self.blocks += [Block(c_in, c_out, stride), Block(c_out, c_out, 1)]
            c_in = c_out
        self.projector = [nn.Linear(8 * width, 2048, bias=False), nn.BatchNorm(2048), Tensor.relu,
                          nn.Linear(2048, 256, bias=False)]
        self.head = nn.Linear(256, 256, bias=False)

    def __call__(self, x):
        z = self.bn1(self.conv1(x)).relu().sequential(self.blocks).mean((2, 3)).sequential(self.projector)
        return z, self.head(z)


def cosine(p, z):
    return ((p * z).sum(1) / ((p * p).sum(1).sqrt() * (z * z).sum(1).sqrt())).mean()


def main():
    imported = measure.peak_rss()
    args = measure.options(__doc__)
    if Device.DEFAULT != "CL":
        raise SystemExit(f"tinygrad {version('tinygrad')} runs on {Device.DEFAULT} with DEV=CL: a newer one is needed")
    Tensor.manual_seed(1)
    net = Network(args.width)
    parameters = [t for t in nn.state.get_parameters(net) if t.is_param]
    sgd = nn.optim.SGD(nn.state.get_parameters(net), lr=0.05, momentum=0.9, weight_decay=1e-4)
    x1, x2 = (Tensor.randn(args.batch, 3, 32, 32).realize() for _ in range(2))

    @TinyJit
    def jitted():
        z1, p1 = net(x1)
        z2, p2 = net(x2)
        loss = -(cosine(p1, z2.detach()) + cosine(p2, z1.detach())) / 2
        sgd.zero_grad()
        loss.backward()
        return loss.realize(*sgd.schedule_step())

    def step():
        with Context(TRAINING=1):
            loss = jitted().item()
        Device[Device.DEFAULT].synchronize()
        return loss

    measure.report(args, step, sum(p.numel() for p in parameters), imported, peer="tinygrad",
                   version=version("tinygrad"), device=Device[Device.DEFAULT].device_name)


if __name__ == "__main__":
    main()
