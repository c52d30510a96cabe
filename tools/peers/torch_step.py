#!/usr/bin/env python3
"""PyTorch's training step, the same as that of `offdiag bench step`: ResNet-18 (CIFAR stem), two views of random 32x32
images, projector 8w -> 2048 BN ReLU -> 256 and linear head 256 -> 256, both without biases, symmetrised negative cosine
with stop-gradient, SGD with momentum, float32 (TF32 off). Prints one JSON document. Usually run by tools/bench_peers.
"""
import measure
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.downsample = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet18(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        blocks, c_in = [], width
        for stage, stride in enumerate([1, 2, 2, 2]):
            c_out = width * 2**stage
            blocks += [Block(c_in, c_out, stride), Block(c_out, c_out, 1)]
            c_in = c_out
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3))


def main():
    imported = measure.peak_rss()
    args = measure.options(
        __doc__, device={"default": "cpu", "help": "cpu or cuda"},
        threads={"type": int, "default": measure.cores(), "help": "processor threads (all)"},
        channels_last={"action": "store_true", "help": "that memory format instead of contiguous NCHW"})
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    device = torch.device(args.device)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    net = ResNet18(args.width).to(device, memory_format=layout)
    projector = nn.Sequential(nn.Linear(8 * args.width, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU(),
                              nn.Linear(2048, 256, bias=False)).to(device)
    head = nn.Linear(256, 256, bias=False).to(device)
    parameters = [*net.parameters(), *projector.parameters(), *head.parameters()]
    sgd = torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-4)
    x1, x2 = (torch.randn(args.batch, 3, 32, 32, device=device).contiguous(memory_format=layout) for _ in range(2))

    def step():
        z1, z2 = projector(net(x1)), projector(net(x2))
        p1, p2 = head(z1), head(z2)
        loss = -(F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean()) / 2
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    on_gpu = device.type == "cuda"
    measure.report(args, step, sum(p.numel() for p in parameters), imported,
                   torch.cuda.max_memory_allocated if on_gpu else None, peer="torch", version=torch.__version__,
                   device=torch.cuda.get_device_name() if on_gpu else f"cpu, {args.threads} threads",
                   format="channels_last" if args.channels_last else "contiguous")


if __name__ == "__main__":
    main()
