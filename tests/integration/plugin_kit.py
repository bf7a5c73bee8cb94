"""Plug-ins for tests, installed into a directory as pip would."""

from __future__ import annotations

import tomllib
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"

BAD = """
import os, time, sys

def hangs(classes, now): time.sleep(3600)
def crashes(classes, now): os.kill(os.getpid(), 9)
def raises(classes, now): raise RuntimeError("no idea\\nat all")
def exits(classes, now): sys.exit(3)
def too_few(classes, now): return [1.0] * (len(classes) - 1)
def words(classes, now): return ["first"] * len(classes)
def not_a_number(classes, now): return [float("nan")] * len(classes)
def huge(classes, now): return [1.0] * 5_000_000
def endless(classes, now): return (1.0 for _ in iter(int, 1))
def unsendable(classes, now): return [10 ** 400] * len(classes)
def below(classes, now): return [-1] * len(classes)
def babbles(classes, now):
    while True: print("x" * 65536)
def prints(classes, now):
    print("this is not the answer", flush=True)
    return [0.0] * len(classes)
"""


def install(into: Path) -> Path:
    """The example and the bad ones; the directory to put on PYTHONPATH."""
    into.mkdir(parents=True, exist_ok=True)
    (into / "bad_plugins.py").write_text(BAD)
    (into / "fewest_gpus.py").write_text((EXAMPLE / "fewest_gpus.py").read_text())
    groups = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    names = [line.split("(")[0].removeprefix("def ") for line in BAD.splitlines() if line.startswith("def ")]
    lines = []
    for group, points in groups.items():
        found = points | {name: f"bad_plugins:{name}" for name in names}
        lines += [
            f"[{group}]",
            *(f"{name} = {target}" for name, target in found.items()),
            "broken = no_such:it",
        ]
    info = into / "site_policies-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: site-policies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return into
