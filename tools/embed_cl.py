#!/usr/bin/env python3
"""Write the OpenCL programs of cl/ as one C file: embed_cl.py OUTPUT CL_FILE...

`#include "x.clh"` is replaced by the file's text, searched beside the program, with #line directives so that a build log
names the true place. A header is taken once a program, as if it had `#pragma once`."""
import pathlib
import re
import sys

INCLUDE = re.compile(r'\s*#\s*include\s*"([^"]+)"\s*$')
PIECE = 2000  # bytes a literal: C compilers need not take more than 4095


def resolve(path, taken, stack=()):
    """The lines of a file, its includes resolved."""
    if path in stack:
        sys.exit(f'{path}: includes itself through {" -> ".join(p.name for p in stack)}')
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            lines.append(line)
            continue
        header = path.parent / match.group(1)
        if not header.is_file():
            sys.exit(f'{path}:{number}: there is no {header}')
        if header not in taken:
            taken.add(header)
            lines += resolve(header, taken, stack + (path,))
        lines.append(f'#line {number + 1} "{path.name}"')
    return lines


def literal(piece):
    return '"' + ''.join(ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f'\\{byte:03o}') for byte in piece) + '"'


ESCAPES = {ord('"'): '\\"', ord('\\'): '\\\\', ord('\n'): '\\n', ord('\t'): '\\t', ord('?'): '\\?'}


def main():
    output, programs = sys.argv[1], [pathlib.Path(name) for name in sys.argv[2:]]
    out = ['#include "device/embedded.h"', '', '#include <stddef.h>', '']
    for path in programs:
        text = ('\n'.join(resolve(path, set())) + '\n').encode()
        pieces = [text[i:i + PIECE] for i in range(0, len(text), PIECE)]
        out.append(f'static const char *const text_{path.stem}[] = {{')
        out += [f'    {literal(piece)},' for piece in pieces] + ['    NULL};', '']
    out.append('const od_cl_program od_cl_programs[] = {')
    out += [f'    {{"{path.stem}", text_{path.stem}}},' for path in programs] + ['    {NULL, NULL}};', '']
    pathlib.Path(output).write_text('\n'.join(out), encoding='ascii')


main()
