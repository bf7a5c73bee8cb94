"""Files that come before a job and go after it, and output that stays in the home directory."""

from __future__ import annotations

import pytest

from hpcmesos.errors import InvalidValue
from hpcmesos.master.services.output_paths import final_paths, stored
from hpcmesos.model import JobId
from hpcmesos.pbs.paths import PathTemplate
from hpcmesos.pbs.staging import Transfer, parse_staging
from hpcmesos.pbs.values import check_choice


def test_transfers_are_read_in_their_order() -> None:
    assert parse_staging("stagein", "") == ()
    found = parse_staging("stagein", "in.dat@host1:/data/in,a@b@host2:x:y")
    assert found == (Transfer("in.dat", "host1", "/data/in"), Transfer("a@b", "host2", "x:y"))
    element = parse_staging("stageout", "out.^array_index^@h:/d/^array_index^")[0]
    assert element.of_element(7) == Transfer("out.7", "h", "/d/7")


@pytest.mark.parametrize("text", ["x", "x@host", "@host:/y", "x@:/y", "x@host:", "x@-oProxyCommand=z:/y"])
def test_what_is_no_transfer_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="LOCAL@HOST:REMOTE"):
        parse_staging("stagein", text)


@pytest.mark.parametrize("text", ["o", "e", "oe", "eo", "n", "doe", "oed", "do", "od"])
def test_letters_of_k(text: str) -> None:
    assert check_choice("qsub", "k", text) == text


@pytest.mark.parametrize("text", ["d", "oo", "x", "on", ""])
def test_no_letters_of_k(text: str) -> None:
    with pytest.raises(InvalidValue):
        check_choice("qsub", "k", text)


@pytest.mark.parametrize(
    ("keep", "out", "err"),
    [
        ("n", "/w/x.out", "/w/job.e12"),
        ("o", "job.o12", "/w/job.e12"),
        ("oe", "job.o12", "job.e12"),
        ("oed", "/w/x.out", "/w/job.e12"),
    ],
)
def test_what_is_kept_lies_in_the_home_directory(keep: str, out: str, err: str) -> None:
    submission = {
        "keep": keep,
        "stdout_template": stored(PathTemplate("h", "/w", "/w/x.out", "o")),
        "stderr_template": stored(PathTemplate("h", "/w", None, "e")),
    }
    assert final_paths(submission, JobId(12, "hpcm"), "job") == (out, err)
