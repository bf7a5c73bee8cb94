"""What a child tells of its outputs comes with their descriptors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

from hpcmesos.launch.processes import Report, read_report


def test_the_outputs_of_a_job_are_not_for_the_next_one(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = json.dumps({"pid": 7, "streams": ["stdout", "stderr"], "stdout_path": "out"}).encode()
    with ours, theirs:
        with open(tmp_path / "out", "w+b") as out, open(tmp_path / "err", "w+b") as err:
            socket.send_fds(theirs, [told], [out.fileno(), err.fileno()])
        theirs.close()
        report = Report()
        assert read_report(ours, report)
    assert report.stdout is not None
    assert report.stderr is not None
    try:
        assert (report.pid, report.stdout_path) == (7, "out")
        assert os.path.samestat(os.fstat(report.stdout), os.stat(tmp_path / "out"))
        assert os.path.samestat(os.fstat(report.stderr), os.stat(tmp_path / "err"))
        next_one = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False
        )
        assert str(tmp_path) not in next_one.stdout
    finally:
        os.close(report.stdout)
        os.close(report.stderr)
