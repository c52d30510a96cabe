"""What the peers' steps share: their options, their clock, and the JSON document that tools/bench_peers reads."""
import argparse
import json
import math
import os
import statistics
import time


def options(about, **extra):
    """Parsed command line; extra: further flags by name, as keyword arguments of add_argument."""
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--width", type=int, default=64, help="channels of the first stage (64)")
    p.add_argument("--batch", type=int, default=32, help="images, two views of each (32)")
    p.add_argument("--runs", type=int, default=6, help="timed steps; the median counts (6)")
    p.add_argument("--warm-up", type=int, default=2, help="steps before them (2)")
    for name, how in extra.items():
        p.add_argument("--" + name.replace("_", "-"), **how)
    return p.parse_args()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def peak_rss():
    """The largest resident size of this process so far, in bytes; None where the system does not tell."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def report(args, step, parameters, imported_rss, device_peak=None, **more):
    """Time the steps and print the document. step(): one whole training step, waited for; returns its loss. device_peak():
    the most bytes of a device with memory of its own."""
    first = time.perf_counter()
    losses, seconds, cpu_seconds = [], [], []
    for i in range(args.warm_up + args.runs):
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        if i >= args.warm_up:
            cpu_seconds.append(time.process_time() - cpu)
            seconds.append(time.perf_counter() - wall)
        losses.append(loss)
        if i == 0:
            first = time.perf_counter() - first
    if not all(math.isfinite(x) for x in losses):
        raise SystemExit(f"the loss is not finite: {losses}")
    median = statistics.median(seconds)
    print(json.dumps({**more, "width": args.width, "batch": args.batch, "parameters": parameters, "seconds": median,
                      "images_per_s": args.batch / median, "cpu_seconds": statistics.median(cpu_seconds),
                      "first_step_seconds": first, "losses": losses, "imported_rss_bytes": imported_rss,
                      "peak_device_bytes": device_peak() if device_peak else None}))
