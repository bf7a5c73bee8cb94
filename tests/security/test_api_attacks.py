"""Attacks by users on the API: other users' jobs and secrets, roles that one does not have, forged identities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpcmesos.api_schema import ReservationRequest, ShareRequest
from hpcmesos.master import auth
from hpcmesos.master.auth import Authority, Caller
from hpcmesos.master.services import manager, terminal
from hpcmesos.model import JobState, Role
from tests.security.api_stage import MANAGER, OPERATOR, STRANGER, VICTIM, ApiStage
from tests.security.cases import Case, Switch, Told, Try, both, check, of, replaced

RESERVED = ReservationRequest(name="mine", ends_at=6e9, starts_at=5e9)


def anything(answer: Any) -> bool:
    return True


own_jobs_only = replaced(Caller, "may_touch", lambda self, owner: True)
managers_only = replaced(auth, "check_manager", lambda caller, what: None)
operators_only = replaced(auth, "check_operator", lambda caller, what: None)
changes_need_scope = replaced(auth, "check_scope", lambda caller, wanted, what: None)
roles_are_given: Switch = replaced(
    Authority, "_user", lambda self, name, groups=None: Caller(name, Role.MANAGER)
)
roles_count = replaced(Caller, "privileged", property(lambda self: True))


def by(user: str, command: str, *words: str, on: str = "waiting") -> Try[ApiStage]:
    """The command as that user runs it, on the job of the stage that ``on`` names ("": none)."""

    def run(stage: ApiStage) -> Told:
        job = [getattr(stage, on)] if on else []
        return stage.command(user, command, *words, *job)

    return run


def call(
    user: str, action: Callable[[Any, ApiStage], Any], wanted: Callable[[Any], bool] = bool
) -> Try[ApiStage]:
    """A call of the Python client as that user."""

    def run(stage: ApiStage) -> Told:
        return of(lambda: action(stage.client(user), stage), wanted)

    return run


def controls(command: str, *words: str, on: str = "waiting") -> Case[ApiStage]:
    """A command that owners and operators may give, by another user."""
    return Case(
        f"{command} {' '.join(words)} of another's job".replace("  ", " "),
        by(STRANGER, command, *words, on=on),
        by(VICTIM, command, *words, on=on),
        own_jobs_only,
    )


def for_role(user: str, role: str, guard: Switch, command: str, *words: str, on: str = "") -> Case[ApiStage]:
    """A command for a role that ``user`` does not have."""
    shown = " ".join((command, *words))
    return Case(
        f"{shown} by {user}", by(user, command, *words, on=on), by(role, command, *words, on=on), guard
    )


def order_with(user: str) -> Try[ApiStage]:
    return lambda stage: stage.command(user, "qorder", stage.own, stage.waiting)


def element(user: str) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        return stage.command(user, "qdel", stage.array.replace("[]", "[1]"))

    return run


def delete_all(user: str) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        told = (
            stage.command(user, "qdel", "all", "-p")
            if user == STRANGER
            else stage.command(user, "qdel", "all")
        )
        return Told(stage.state(stage.waiting) is JobState.COMPLETE, told.said)

    return run


def qstat_shows_secret(user: str, *words: str) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        told = stage.command(user, "qstat", "-f", *words, stage.waiting)
        return Told("42x" in told.said, told.said if "42x" in told.said else "")

    return run


def read_log(user: str) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        token = stage.token(user)
        status, text = stage.request("GET", f"/v1/jobs/{stage.waiting}/logs/stdout", token=token)
        return Told(status == 200, text)

    return run


def terminal_of(user: str) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        with stage.client(user).terminal(stage.interactive) as socket:
            first = str(socket.recv(timeout=5))
        return Told("refused" not in first, first)

    return run


def display_of(user: str) -> Try[ApiStage]:
    """A connection of the job's programs; there is none, as its owner hears."""

    def run(stage: ApiStage) -> Told:
        with stage.client(user).terminal(stage.interactive, "display", attempt=1, connection=1) as socket:
            first = str(socket.recv(timeout=5))
        return Told("Unauthorized" not in first, first)

    return run


def before_of(user: str) -> Try[ApiStage]:
    """Lets a job wait for one that the user controls."""

    def run(stage: ApiStage) -> Told:
        return stage.command(user, "qsub", "-W", f"depend=before:{stage.follower}", script=b"true\n")

    return run


CONTROL = [
    controls("qdel"),
    controls("qdel", "-m", "bye", on="running"),
    controls("qhold"),
    controls("qrls"),
    controls("qalter", "-N", "mine"),
    controls("qalter", "-l", "walltime=1", on="running"),
    controls("qmove", "long"),
    controls("qsig", "-s", "KILL", on="running"),
    controls("qmsg", "hello", on="running"),
    controls("canceljob"),
    controls("mjobctl", "-c"),
    Case("qorder of another's job", order_with(STRANGER), order_with(OPERATOR), own_jobs_only),
    Case("qdel of another's array element", element(STRANGER), element(VICTIM), own_jobs_only),
    Case(
        "qdel all reaches others' jobs",
        delete_all(STRANGER),
        delete_all(OPERATOR),
        both(roles_count, operators_only),
    ),
    Case(
        "DELETE of another's job",
        call(STRANGER, lambda client, stage: client.delete(stage.waiting)),
        call(VICTIM, lambda client, stage: client.delete(stage.waiting)),
        own_jobs_only,
    ),
    Case("the log of another's job", read_log(STRANGER), read_log(VICTIM), own_jobs_only),
    Case(
        "the terminal of another's interactive job",
        terminal_of(STRANGER),
        terminal_of(VICTIM),
        replaced(terminal, "find_terminal", lambda site, caller, text: terminal.find(site, text)),
    ),
    Case(
        "what another's programs show",
        display_of(STRANGER),
        display_of(VICTIM),
        replaced(terminal, "find_terminal", lambda site, caller, text: terminal.find(site, text)),
    ),
    Case("depend=before on another's job", before_of(STRANGER), before_of(VICTIM), own_jobs_only),
    *(
        Case(
            f"another's variables by qstat -f {' '.join(form)}".strip(),
            qstat_shows_secret(STRANGER, *form),
            qstat_shows_secret(VICTIM, *form),
            own_jobs_only,
            silent=True,
        )
        for form in ((), ("-F", "json"), ("-F", "dsv"), ("-x",))
    ),
]

ROLES = [
    for_role(VICTIM, OPERATOR, operators_only, "qrerun", on="running"),
    for_role(VICTIM, OPERATOR, operators_only, "qdel", "-p", on="waiting"),
    for_role(VICTIM, OPERATOR, operators_only, "qhold", "-h", "o", on="waiting"),
    for_role(VICTIM, OPERATOR, operators_only, "qrls", "-h", "s", on="waiting"),
    for_role(VICTIM, OPERATOR, operators_only, "qalter", "-h", "s", on="waiting"),
    for_role(STRANGER, OPERATOR, operators_only, "pbsnodes", "-o", "node1"),
    for_role(STRANGER, OPERATOR, operators_only, "qdisable", "batch"),
    for_role(STRANGER, MANAGER, managers_only, "qmgr", "-c", f"set server managers = {STRANGER}"),
    for_role(OPERATOR, MANAGER, managers_only, "qmgr", "-c", f"set server managers = {OPERATOR}"),
    for_role(STRANGER, MANAGER, managers_only, "qmgr", "-c", "set queue batch started = false"),
    for_role(STRANGER, OPERATOR, operators_only, "qmgr", "-c", "set node node1 state = offline"),
    Case(
        "a reservation by a user",
        call(STRANGER, lambda client, stage: client.reserve(RESERVED)),
        call(OPERATOR, lambda client, stage: client.reserve(RESERVED)),
        operators_only,
    ),
    Case(
        "a reservation taken away by a user",
        call(STRANGER, lambda client, stage: client.unreserve("kept"), anything),
        call(OPERATOR, lambda client, stage: client.unreserve("kept"), anything),
        operators_only,
    ),
    Case(
        "shares by an operator",
        call(
            OPERATOR,
            lambda client, stage: client.set_shares(ShareRequest(project="mine", shares=9.0)),
            anything,
        ),
        call(
            MANAGER,
            lambda client, stage: client.set_shares(ShareRequest(project="mine", shares=9.0)),
            anything,
        ),
        managers_only,
    ),
    Case(
        "the end of a master by an operator",
        by(OPERATOR, "qterm", on=""),
        by(MANAGER, "qterm", on=""),
        managers_only,
    ),
    Case(
        "what others changed",
        call(STRANGER, lambda client, stage: client.audit(user=VICTIM)),
        call(MANAGER, lambda client, stage: client.audit(user=VICTIM)),
        roles_are_given,
    ),
    Case(
        "others' tokens, listed",
        call(STRANGER, lambda client, stage: [t for t in client.tokens() if t.user == VICTIM]),
        call(VICTIM, lambda client, stage: [t for t in client.tokens() if t.user == VICTIM]),
        roles_are_given,
        silent=True,
    ),
    Case(
        "others' tokens, revoked",
        call(STRANGER, lambda client, stage: client.revoke_tokens([stage.secret_id])),
        call(VICTIM, lambda client, stage: client.revoke_tokens([stage.secret_id])),
        roles_are_given,
    ),
    Case(
        "a token for another user",
        call(STRANGER, lambda client, stage: client.create_token("user", user=VICTIM)),
        call(MANAGER, lambda client, stage: client.create_token("user", user=VICTIM)),
        managers_only,
    ),
    Case(
        "a join token by a user",
        call(STRANGER, lambda client, stage: client.create_token("join")),
        call(MANAGER, lambda client, stage: client.create_token("join")),
        managers_only,
    ),
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no other API process that would have to see a change first."""
    monkeypatch.setattr(manager, "FRESH", 0.0)


@pytest.mark.parametrize("case", [*CONTROL, *ROLES], ids=lambda case: case.name)
def test_attack(case: Case[ApiStage], stage: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, stage, monkeypatch)
