#!/usr/bin/env python3
"""Files of a folder on the loopback address, for tests/test_fetch.c.

  fetch_server.py FOLDER     writes FOLDER/port once it listens, FOLDER/log for each request; ends with its parent

/FILE serves it with Range; /cut/FILE breaks the first two answers off; /norange/FILE ignores Range; else 404.
It first makes the archives: good.tgz and what is wrong in the way its name says.
"""
import ctypes
import gzip
import http.server
import io
import os
import re
import signal
import sys
import tarfile

TOP = "cifar-100-binary/"


def entry(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def archive(name, *extra):
    with tarfile.open(name, "w:gz") as tar:
        entry(tar, TOP + "train.bin", bytes(i * i % 251 for i in range(100000)))
        entry(tar, TOP + "test.bin", b"test" * 1000)
        for arguments, fields in extra:
            entry(tar, *arguments, **fields)


def make_archives():
    archive("good.tgz")
    archive("up.tgz", ((TOP + "../../escaped", b"x"), {}))
    archive("absolute.tgz", ((os.path.abspath("escaped"), b"x"), {}))
    archive("beside.tgz", (("other/file", b"x"), {}))
    archive("symlink.tgz", ((TOP + "link",), {"type": tarfile.SYMTYPE, "linkname": ".."}), ((TOP + "link/escaped", b"x"), {}))
    archive("hardlink.tgz", ((TOP + "link",), {"type": tarfile.LNKTYPE, "linkname": TOP + "test.bin"}))
    archive("device.tgz", ((TOP + "device",), {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}))
    archive("twice.tgz", ((TOP + "test.bin", b"other"), {}))
    archive("many.tgz", *((("%s%d" % (TOP, i), b"x"), {}) for i in range(200)))
    whole = open("good.tgz", "rb").read()
    open("short.tgz", "wb").write(whole[: len(whole) // 2])
    open("noise.tgz", "wb").write(bytes(i * 7 % 256 for i in range(5000)))
    claim = tarfile.TarInfo(TOP + "huge")
    claim.size = 1 << 40
    open("claim.tgz", "wb").write(gzip.compress(claim.tobuf() + bytes(1024)))
    bomb = tarfile.TarInfo(TOP + "bomb")
    bomb.size = 190 << 20  # what it says is allowed; the next file is too much
    open("bomb.tgz", "wb").write((gzip.compress(bomb.tobuf()) + gzip.compress(bytes(1 << 20)) * 190) * 2)
    with tarfile.open("lacks.tgz", "w:gz") as tar:
        entry(tar, TOP + "train.bin", b"x")


class Handler(http.server.BaseHTTPRequestHandler):
    cuts = 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.split("/")[-1]
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        with open("log", "a") as log:
            log.write("%s %s\n" % (self.path, wanted[1] if wanted else "-"))
        if not os.path.isfile(name):
            self.send_error(404)
            return
        data, first = open(name, "rb").read(), 0
        if wanted and not self.path.startswith("/norange/"):
            first = int(wanted[1])
            if first >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", "bytes %d-%d/%d" % (first, len(data) - 1, len(data)))
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        rest = data[first:]
        if self.path.startswith("/cut/") and Handler.cuts < 2:
            Handler.cuts += 1
            rest = rest[: len(rest) // 3]
        self.wfile.write(rest)


def main():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.chdir(sys.argv[1])
    make_archives()
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    with open("port.new", "w") as port:
        port.write(str(server.server_port))
    os.rename("port.new", "port")
    server.serve_forever()


if __name__ == "__main__":
    main()
