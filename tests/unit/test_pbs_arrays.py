"""How arrays and their elements show, in both families."""

from __future__ import annotations

from hpcmesos.pbs.arrays import parse_array
from hpcmesos.pbs.attributes import job_attributes
from hpcmesos.pbs.facts import JobFacts, each
from hpcmesos.pbs.paths import PathTemplate
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.render_text import plain

PARENT = JobFacts(
    id="74[].hpcm", name="arr", owner="ann", submit_host="login", state="R", queue="batch", server="hpcm",
    array=parse_array("1-5%2"), array_counts={"Q": 2, "R": 2, "C": 1}, array_remaining="4-5",
)  # fmt: skip
OVER = JobFacts(
    id="74[1].hpcm", name="arr", owner="ann", submit_host="login", state="C", queue="batch", server="hpcm",
    array_id="74[].hpcm", array_index=1, in_live_array=True, exit_status=3,
)  # fmt: skip
WAITING = JobFacts(
    id="74[4].hpcm", name="arr", owner="ann", submit_host="login", state="Q", queue="batch", server="hpcm",
    array_id="74[].hpcm", array_index=4, in_live_array=True, alike=(4, 5),
)  # fmt: skip


def columns(personality: Personality) -> list[tuple[str, str, str]]:
    rows = [line.split() for line in plain([PARENT, OVER, WAITING], personality).splitlines()[2:]]
    return [(row[0], row[1], row[4]) for row in rows]


def test_elements_that_wait_have_a_row_each() -> None:
    assert columns(Personality.TORQUE) == [
        ("74[].hpcm", "arr", "R"),
        ("74[1].hpcm", "arr-1", "C"),
        ("74[4].hpcm", "arr-4", "Q"),
        ("74[5].hpcm", "arr-5", "Q"),
    ]
    assert columns(Personality.PBSPRO) == [
        ("74[].hpcm", "arr", "B"),
        ("74[1].hpcm", "arr", "X"),
        ("74[4].hpcm", "arr", "Q"),
        ("74[5].hpcm", "arr", "Q"),
    ]
    assert [job.id for job in each([PARENT, WAITING])] == ["74[].hpcm", "74[4].hpcm", "74[5].hpcm"]


def test_the_attributes_of_an_array_are_those_of_openpbs() -> None:
    shown = dict(job_attributes(PARENT, Personality.PBSPRO, show_variables=False))
    wanted = {
        "job_state": "B",
        "substate": 70,
        "array": "True",
        "array_state_count": "Queued:2 Running:2 Exiting:0 Expired:1",
        "array_indices_submitted": "1-5",
        "array_indices_remaining": "4-5",
        "max_run_subjobs": 2,
    }
    assert {name: shown[name] for name in wanted} == wanted
    assert (
        dict(job_attributes(PARENT, Personality.TORQUE, show_variables=False))["job_array_request"] == "1-5%2"
    )
    element = dict(job_attributes(OVER, Personality.PBSPRO, show_variables=False))
    assert (element["array_id"], element["array_index"], element["Exit_status"]) == ("74[].hpcm", 1, 3)
    torque = dict(job_attributes(OVER, Personality.TORQUE, show_variables=False))
    assert (torque["job_array_id"], torque["Job_Name"]) == (1, "arr-1")


def test_the_names_of_elements_files() -> None:
    torque = PathTemplate("h", "/w", letter="e")
    pbspro = PathTemplate("h", "/w", letter="e", pbspro=True)
    assert torque.render("74[3].hpcm", 74, 3, "arr") == "/w/arr.e74-3"
    assert pbspro.render("74[3].hpcm", 74, 3, "arr") == "/w/arr.e74.3"
    assert pbspro.render("74[].hpcm", 74, None, "arr") == "/w/arr.e74.^array_index^"
    for family in (False, True):
        named = PathTemplate("h", "/w", "/o/x_^array_index^.txt", pbspro=family)
        assert named.render("74[3].hpcm", 74, 3, "arr") == "/o/x_3.txt"
        assert (
            PathTemplate("h", "/w", "/dev/null", pbspro=family).render("74[3].hpcm", 74, 3, "a")
            == "/dev/null"
        )
    assert PathTemplate("h", "/w", "/o/x").render("74[3].hpcm", 74, 3, "arr") == "/o/x-3"
    assert PathTemplate("h", "/w", "/o/x", pbspro=True).render("74[3].hpcm", 74, 3, "arr") == "/o/x"
