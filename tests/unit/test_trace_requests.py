"""Requests as real users wrote them: each is read as the trace says, or refused for the right reason.

``HPCMESOS_TRACES`` names a directory with ``wagap-2013.swf.gz`` (MetaCentrum 2013, aleasimulator/alea): its 17,900 jobs
are read then, column 8 (processors) against column 21 (``nodes=``). Without it, one request of each form of it.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hpcmesos.errors import InvalidValue
from hpcmesos.pbs.resources import build

SAMPLE = Path(__file__).parents[1] / "golden" / "requests.txt"


def requests() -> Iterator[tuple[int, str]]:
    """Processors, and what was asked for."""
    directory = os.environ.get("HPCMESOS_TRACES")
    trace = Path(directory or "/nowhere") / "wagap-2013.swf.gz"
    if not trace.exists():
        for line in SAMPLE.read_text().splitlines():
            count, request = line.split()
            yield int(count), request
        return
    with gzip.open(trace, "rt") as file:
        for line in file:
            if not line.startswith(";"):
                fields = line.split()
                yield int(fields[7]), fields[20]


def reason(request: str) -> str | None:
    """Why we cannot serve it, told from its text alone; None: we can."""
    if re.search(r"(?:^|:)\^", request):
        return "features cannot be excluded"
    return "whole numbers only" if re.search(r"ppn=\d*\.\d", request) else None


def test_every_request_of_the_trace() -> None:
    seen = refused = 0
    for processors, request in requests():
        seen += 1
        expected = reason(request)
        try:
            built = build({"nodes": request}).request
        except InvalidValue as error:
            refused += 1
            assert expected is not None, f"{request}: {error}"
            assert expected in str(error), request
            continue
        assert expected is None, request
        assert built.cpus == processors, request
        words = request.split("#")[0].replace("+", ":").split(":")
        features = {
            word for word in words if "=" not in word and not word.isdigit() and not word.startswith("zewura")
        }
        assert features <= {feature for chunk in built.chunks for feature in chunk.features}, request
    assert seen > 30
    assert 0 < refused < seen / 2
