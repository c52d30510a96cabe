#!/usr/bin/env python3
"""Sum what tools/test ran: meson's logs (DIR/*.json, a JSON object a line) and its own checks (DIR/checks).

Each test executable counts by Criterion's Synthesis line. One that ended badly without such a line, or whose line shows no
failure although it failed, counts as one failed. Skips are listed with their reason. The last line: "N passed, N failed".
"""
import json
import pathlib
import re
import sys
import tempfile

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SYNTHESIS = re.compile(r"Synthesis: Tested: (\d+) \| Passing: (\d+) \| Failing: (\d+) \| Crashing: (\d+)")
SKIP = re.compile(r"^\[SKIP\] (\S+?)(?:: (.*))?$", re.M)
# What Oclgrind says about a kernel; the program under it goes on and exits with 0.
MEMCHECK = re.compile(r"^(?:Invalid (?:read|write)|(?:Read|Write)-write data race|Uninitialized|"
                      r"Controlflow depends on|Work-group divergence).*", re.M)


def sum_executable(entry):
    """(passed, failed, skipped lines, failure lines) of one entry of a meson log."""
    name, result = entry["name"], entry["result"]
    text = COLOUR.sub("", (entry.get("stdout") or "") + "\n" + (entry.get("stderr") or ""))
    skips = [f"{name}: {test}: {why or 'no reason given'}" for test, why in SKIP.findall(text)]
    found = SYNTHESIS.findall(text)
    tested, passed = (sum(int(f[i]) for f in found) for i in (0, 1))
    failed = tested - passed
    faults = [f"{name}: {failed} of {tested} tests failed"] if failed else []
    if result == "SKIP":
        skips = skips or [f"{name}: exit code 77"]
    elif result not in ("OK", "EXPECTEDFAIL") and not failed:
        failed, faults = 1, [f"{name}: {result.lower()} (exit code {entry.get('returncode')})"]
    elif not found and result == "OK":
        passed = 1  # a script
    elif tested == 0 and not skips:
        failed, faults = 1, [f"{name}: no test ran"]
    complaint = MEMCHECK.search(text)
    if complaint and not failed:
        passed, failed, faults = max(passed - 1, 0), 1, [f"{name}: Oclgrind: {complaint.group(0)}"]
    return passed, failed, skips, faults


def sum_folder(folder):
    passed, failed, skips, faults = 0, 0, [], []
    for log in sorted(folder.glob("*.json")):
        for line in log.read_text("utf-8", "replace").splitlines():
            if line.strip():
                p, f, s, w = sum_executable(json.loads(line))
                passed, failed = passed + p, failed + f
                skips += [f"{log.stem}: {x}" for x in s]
                faults += [f"{log.stem}: {x}" for x in w]
    checks = folder / "checks"
    for line in checks.read_text().splitlines() if checks.exists() else []:
        verdict, _, name = line.partition(" ")
        passed += verdict == "pass"
        failed += verdict == "fail"
        if verdict == "fail":
            faults.append(name)
        if verdict == "skip":
            skips.append(name)
    return passed, failed, skips, faults


def selftest():
    good = "[====] Synthesis: Tested: 5 | Passing: 5 | Failing: 0 | Crashing: 0 \n"
    bad = "[====] Synthesis: Tested: 5 | Passing: \x1b[1m2\x1b[0m | Failing: 3 | Crashing: 1 \n"
    rows = [  # result, output, passed, failed, skips
        ("OK", good, 5, 0, 0),
        ("FAIL", bad, 2, 3, 0),
        ("OK", "[SKIP] a::b: no such data: 3\n" + good, 5, 0, 1),
        ("OK", "[SKIP] a::b: none\n" + good.replace("5", "0"), 0, 0, 1),
        ("OK", good.replace("5", "0"), 0, 1, 0),
        ("FAIL", "Segmentation fault", 0, 1, 0),
        ("TIMEOUT", "[RUN ] a::b", 0, 1, 0),
        ("FAIL", good, 5, 1, 0),
        ("OK", "a script's words", 1, 0, 0),
        ("SKIP", "", 0, 0, 1),
        ("OK", "Read-write data race at global memory\n" + good, 4, 1, 0),
        ("OK", "Invalid read of size 4 at global memory address\n" + good, 4, 1, 0),
    ]
    wrong = []
    for result, output, *expected in rows:
        p, f, s, w = sum_executable({"name": "t", "result": result, "stdout": "", "stderr": output, "returncode": 0})
        if [p, f, len(s)] != expected or bool(w) != bool(f):
            wrong.append(f"{result} {output!r}: {p} passed, {f} failed, {len(s)} skipped, not {expected}")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "quick.json").write_text(json.dumps({"name": "t", "result": "FAIL", "stdout": bad}) + "\n")
        (path / "checks").write_text("pass layers\nfail build\nskip rusticl: not there\n")
        p, f, s, w = sum_folder(path)
        if (p, f, len(s), len(w)) != (3, 4, 1, 2):
            wrong.append(f"folder: {p} passed, {f} failed, {s}, {w}")
    print("\n".join(wrong) or f"sum_tests: {len(rows) + 1} known results summed rightly")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--selftest"]:
        return selftest()
    passed, failed, skips, faults = sum_folder(pathlib.Path(sys.argv[1]))
    for line in skips:
        print(f"skipped: {line}")
    for line in faults:
        print(f"failed: {line}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or passed == 0 else 0


sys.exit(main())
