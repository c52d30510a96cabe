#!/usr/bin/env python3
"""Write text files as one C file of strings: embed_text.py OUTPUT HEADER NAME=FILE... An empty FILE gives "". HEADER is
what declares the names."""
import pathlib
import sys

PIECE = 2000  # bytes a line
ESCAPES = {ord('"'): '\\"', ord('\\'): '\\\\', ord('\n'): '\\n', ord('\t'): '\\t', ord('?'): '\\?'}


def literal(piece):
    return '"' + ''.join(ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f'\\{byte:03o}') for byte in piece) + '"'


def main():
    output, header = sys.argv[1:3]
    out = [f'#include "{header}"', '']
    for argument in sys.argv[3:]:
        name, path = argument.split('=', 1)
        text = pathlib.Path(path).read_bytes() if path else b''
        out.append(f'const char {name}[] =')
        out += [f'    {literal(text[i:i + PIECE])}' for i in range(0, len(text), PIECE)] or ['    ""']
        out[-1] += ';'
    pathlib.Path(output).write_text('\n'.join(out) + '\n', encoding='ascii')


main()
