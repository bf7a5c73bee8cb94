"""Where the workload logs of others are, and that they are the ones that the tests mean."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import pytest

PLACE = os.environ.get("HPCMESOS_TRACES", "")

SHA256 = {
    "KTH-SP2-1996-2.1-cln.swf.gz": "3e152f201fd2e96808a735bced6ea6eb0bb07fdc447689cafb0750d87b264c0b",
    "SDSC-SP2-1998-4.2-cln.swf.gz": "e03fe48be50c4ab04d6bb2285296d9c3399e9c1f27ee79b754ad32a14abd9bac",
    "lublin_256.swf.gz": "ba3ee5b59b5bd8dfd369da283bab7b9f968b57fb5e77684eda4e46cfa58694c3",
    "muri_trace1.csv.gz": "91d4308364ce8bdfb28797ddc2bea852b4b26e635bacd36d2a6d0db3c49eb432",
    "philly_82k.csv.gz": "3e7c68fda81aa3456ae29ff7b5b8cd08a81ca915c45e1626baa43530636e5684",
    "lingjun2023_topo.csv.gz": "13343d1baa055f2be46bd59a7b9bfb360ae025090827ef08bb8951cece0a89dc",
    "openb_node_list_gpu_node.csv.gz": "e16ebefa8337f852d9f918f595f6fe67e02cfc2ce1e1c7b0181a15a992bea345",
    "openb_pod_list_default.csv.gz": "dc395ddbd156933a57da9caee1d79ddd745146deb1255bcb1f4aac54bc3047f3",
}


@cache
def trace(name: str) -> Path:
    """The file; skips the test where nobody has put it. HPCMESOS_TRACES names the directory."""
    path = Path(PLACE) / name
    if PLACE and path.is_file():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name], f"{path} is another file"
        return path
    pytest.skip("no trace files here; HPCMESOS_TRACES names their directory")
