"""The job that ``hpcmesos tfrun`` becomes."""

from __future__ import annotations

from hpcmesos.cli.tfrun import qsub_words


def test_words() -> None:
    words = qsub_words(4, 2, 1, "train", ("-q", "gpu"), ("python", "t.py", "{ps_hosts}"), "/here")
    assert " ".join(words) == (
        "-q gpu -V -W capture=true,framework=tfmesos:worker=4,ps=2 "
        "-l select=4:ncpus=1:mpiprocs=1:ngpus=1+2:ncpus=1:mpiprocs=1 -d /here -N train "
        "-- hpcmesos run --label python t.py {ps_hosts}"
    )


def test_without_servers_all_are_workers() -> None:
    words = " ".join(qsub_words(2, 0, 0, "t", (), ("x",), "/"))
    assert "framework=tfmesos:worker=2 " in words
    assert "-l select=2:ncpus=1:mpiprocs=1:ngpus=0 " in words
