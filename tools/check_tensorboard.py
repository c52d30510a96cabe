#!/usr/bin/env python3
"""Hold a run's TensorBoard events against its metrics.jsonl, with TensorBoard's own reader (pip install tensorboard).

usage: tools/check_tensorboard.py RUN...
Every step's loss and rate and every epoch's figures must be there once, pictures must be whole, and the reader must not
have warned. Exit 1 where that fails, 77 where tensorboard is not installed."""
import json
import logging
import pathlib
import struct
import sys
import warnings

warnings.simplefilter('ignore')  # of the package's own imports
try:
    from tensorboard.backend.event_processing import plugin_event_accumulator as event_accumulator
    from tensorboard.util import tb_logging
    from tensorboard.util import tensor_util
except ImportError:
    print('check_tensorboard: tensorboard is not installed for this Python', file=sys.stderr)
    sys.exit(77)

EPOCH_TAGS = {'loss': 'epoch/loss', 'knn': 'eval/knn', 'effective_rank': 'collapse/effective_rank', 'z_std': 'collapse/z_std',
              'offdiag_norm': 'head/offdiag_norm', 'images_per_s': 'speed/images_per_s'}


class Collect(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


def scalars(events, tag):
    return [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)] if tag in events.Tags()['tensors'] else []


def expect_series(faults, events, tag, wanted):
    """wanted: (step, value) as metrics.jsonl has them; events hold 32-bit values."""
    found = scalars(events, tag)
    if [s for s, _ in found] != [s for s, _ in wanted]:
        faults.append(f'{tag}: {len(found)} steps, {len(wanted)} in metrics.jsonl')
    elif any(abs(a - b) > 1e-6 * max(abs(b), 1e-30) for (_, a), (_, b) in zip(found, wanted)):
        faults.append(f'{tag}: other values than metrics.jsonl')


def check(run):
    collect, faults = Collect(), []
    loggers = [tb_logging.get_logger(), logging.getLogger()]
    for logger in loggers:
        logger.addHandler(collect)
    events = event_accumulator.EventAccumulator(str(run), size_guidance={event_accumulator.TENSORS: 0})
    events.Reload()
    for logger in loggers:
        logger.removeHandler(collect)
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    steps, epochs = [[x for x in lines if x['event'] == e] for e in ('step', 'epoch')]
    start = [(0, x['knn']) for x in lines if x['event'] == 'start']
    expect_series(faults, events, 'train/loss', [(x['step'], x['loss']) for x in steps])
    expect_series(faults, events, 'train/lr', [(x['step'], x['lr']) for x in steps])
    for key, tag in EPOCH_TAGS.items():
        series = [(x['step'], x[key]) for x in epochs if x[key] is not None]
        expect_series(faults, events, tag, (start if key == 'knn' else []) + series)
    head = json.loads((run / 'config.json').read_text())['options']['head']
    pictures = ['views/batch'] + (['head/E'] if head in ('offdiag', 'linear') else [])
    for tag in pictures:
        found = events.Tensors(tag) if tag in events.Tags()['tensors'] else []
        if len(found) != len(epochs):
            faults.append(f'{tag}: {len(found)} pictures of {len(epochs)} epochs')
        for e in found:
            width, height, png = tensor_util.make_ndarray(e.tensor_proto)[:3]
            if png[:8] != b'\x89PNG\r\n\x1a\n' or struct.unpack('>II', png[16:24]) != (int(width), int(height)):
                faults.append(f'{tag}: step {e.step}: no PNG of {width}x{height}')
    if len(pictures) > 1:
        for e in events.Tensors('head/offdiag') if 'head/offdiag' in events.Tags()['tensors'] else []:
            buckets = tensor_util.make_ndarray(e.tensor_proto)
            size = json.loads((run / 'config.json').read_text())['options']['proj_dim']
            if round(buckets[:, 2].sum()) != size * (size - 1):
                faults.append(f'head/offdiag: step {e.step}: {buckets[:, 2].sum()} entries')
    faults += [f'the reader warned: {text}' for text in collect.said]
    for fault in faults:
        print(f'{run}: {fault}')
    if not faults:
        print(f'{run}: {len(steps)} steps and {len(epochs)} epochs as in metrics.jsonl, {len(pictures) * len(epochs)} pictures, no warning')
    return not faults


if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
    print(__doc__)
    sys.exit(0 if sys.argv[1:] in (['-h'], ['--help']) else 2)
sys.exit(0 if all([check(pathlib.Path(p)) for p in sys.argv[1:]]) else 1)
