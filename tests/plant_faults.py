#!/usr/bin/env python3
"""Kernels with faults in them, for tests/test_matrix.c and tests/test_offline.c: plant_faults.py EMBED_CL OUTPUT DIR CL_FILE...

Copies cl/ to DIR, breaks one kernel of each kind, and embeds the copy with tools/embed_cl.py. A place that is not found
exactly once ends the build: a fault that isn't planted would be found by nobody."""
import pathlib
import shutil
import subprocess
import sys

FAULTS = [
    # wrong: what is 0 counts as positive
    ('pointwise.cl', 'out > ZERO', 'out >= ZERO'),
    # out of bounds: one element past the end
    ('pointwise.cl', 'store(out + out_offset + at, load(a + a_offset + at, lanes) + load(b + b_offset + at, lanes), lanes);',
     'store(out + out_offset + at, load(a + a_offset + at, lanes) + load(b + b_offset + at, lanes), lanes);\n'
     '    if (get_global_id(0) == 0) out[out_offset + count] = 0.0f;'),
    # NaN: in the first element
    ('pointwise.cl', 'load(x + x_offset + at, lanes) * factor', 'load(x + x_offset + at, lanes) * (at == 0 ? NAN : factor)'),
    # race: every work-item reads an element that one of them writes; no value depends on which is first, as a wrong one
    # would be found instead
    ('pointwise.cl', 'store(y + y_offset + at, sum, lanes);',
     'store(y + y_offset + at, sum + 0.0f * y[y_offset], lanes);'),
    # spills: numbers that all live at once, more than a device has registers; in one of the programs' forms
    ('norm.cl', 'vec m = load(mean + mean_offset + col, lanes);',
     'vec m = load(mean + mean_offset + col, lanes);\n'
     '#if TX == 32\n'
     '        if (c == 0xffffffffu) {\n'
     '            float held[272];\n'
     '            __attribute__((opencl_unroll_hint)) for (uint i = 0; i < 272; i++) held[i] = mean[i * flags];\n'
     '            for (uint k = 0; k < flags; k++)\n'
     '                __attribute__((opencl_unroll_hint)) for (uint i = 0; i < 272; i++)\n'
     '                    held[i] = held[i] * mean[k] + mean[k + i];\n'
     '            __attribute__((opencl_unroll_hint)) for (uint i = 0; i < 272; i++) saved[i * flags] = held[i];\n'
     '        }\n'
     '#endif'),
    # crash: far outside of anything
    ('pool.cl', 'AT(argmax)[at] = best_at;', 'AT(argmax)[at + (1ul << 44)] = best_at;'),
    # hang
    ('head.clh', 'dw[dw_offset + i * d + i] = 0.0f;',
     '{\n        dw[dw_offset + i * d + i] = 0.0f;\n        for (volatile int spin = 1; spin;)\n            ;\n    }'),
]


def main():
    embed, output, folder, programs = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4:]
    source = pathlib.Path(programs[0]).parent
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*source.glob('*.cl'), *source.glob('*.clh')]:
        shutil.copy(path, folder / path.name)
    for name, old, new in FAULTS:
        path = folder / name
        text = path.read_text(encoding='utf-8')
        if text.count(old) != 1:
            sys.exit(f'plant_faults: {name} holds {old!r} {text.count(old)} times, not once')
        path.write_text(text.replace(old, new), encoding='utf-8')
    subprocess.run([sys.executable, embed, output, *[str(folder / pathlib.Path(p).name) for p in programs]], check=True)


main()
