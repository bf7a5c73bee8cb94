"""Scopes and revocation of tokens, and the marks that every change leaves."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

import pytest

from hpcmesos.errors import InvalidValue, Unauthenticated, Unauthorized
from hpcmesos.master import vault
from hpcmesos.queue.records import GpuRecord, NodeRecord

if TYPE_CHECKING:
    from hpcmesos.client import Client

    from .api_kit import Api, ObedientLeader

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module")
def api_settings() -> dict[str, object]:
    return {"managers": (ME, "boss"), "root_jobs": True}


def submit(client: Client) -> str:
    return client.command("qsub", [], script=b"true\n", environ={}).stdout.strip()


def token(api: Api, user: str, scope: str) -> str:
    with api.client() as manager:
        return manager.create_token("user", user=user, scope=scope).token


def test_a_token_for_reading_changes_nothing(api: Api) -> None:
    with api.client(token(api, "ann", "all")) as ann:
        job = submit(ann)
    before = api.counts()
    with api.client(token(api, "ann", "read")) as reader:
        assert reader.job(job).owner == "ann"
        assert reader.command("qstat", []).code == 0
        for change in (
            lambda: submit(reader),
            lambda: reader.command("qdel", [job]),
            lambda: reader.command("qalter", ["-N", "x", job]),
            lambda: reader.delete(job),
            lambda: reader.create_token("user"),
            lambda: reader.revoke_tokens(["0"]),
        ):
            with pytest.raises(Unauthorized, match="scope 'read'"):
                change()
    assert api.counts() == before


def test_a_gpu_may_be_spoken_of_while_its_node_is_down(api: Api, obedient: ObedientLeader) -> None:
    card = GpuRecord(uuid="SIM-away-0", node="away", index=0, simulated=True)
    with api.leader.transaction() as tx:
        tx.upsert_node(NodeRecord(name="away", cpus=1, mem=1, up=False, gpus=(card,)))
    with api.client() as manager:
        reply = manager.command("pbsnodes", ["-o", "--gpu", "0", "-N", "fan", "away"])
        assert (reply.code, reply.stderr) == (0, "")
        assert "Unknown GPU 7 of away" in manager.command("pbsnodes", ["-c", "--gpu", "7", "away"]).stderr
    asked = [row.payload for row in obedient.taken if row.kind == "node"]
    assert asked == [{"node": "away", "action": "gpu offline", "gpu": "SIM-away-0", "note": "fan"}]


def test_a_token_for_jobs_gives_no_role_and_makes_no_tokens(api: Api) -> None:
    with api.client(token(api, "boss", "jobs")) as limited:
        submit(limited)
        with pytest.raises(Unauthorized):
            limited.create_token("user", user="ann")
        with pytest.raises(Unauthorized):
            limited.create_token("user")
        assert limited.command("qmgr", ["-c", "set server scheduling = false"]).code != 0
    with api.client(token(api, "boss", "all")) as whole:
        whole.create_token("user", user="ann")


def test_a_revoked_token_is_refused_and_so_are_its_children(api: Api) -> None:
    mother = token(api, "ann", "all")
    with api.client(mother) as ann:
        child = ann.create_token("user", lifetime=100 * 86400).token
        [of_mother, of_child] = ann.tokens()[-2:]
        assert of_child.expires_at <= of_mother.expires_at
        with api.client(child) as other:
            other.jobs()
        assert sorted(ann.revoke_tokens([of_mother.id])) == sorted([of_mother.id, of_child.id])
    for secret in (mother, child):
        with api.client(secret) as dead, pytest.raises(Unauthenticated, match="revoked"):
            dead.jobs()


def test_users_see_and_revoke_their_own_tokens_only(api: Api) -> None:
    with api.client(token(api, "ann", "all")) as ann, api.client(token(api, "bob", "all")) as bob:
        mine = {one.id for one in ann.tokens()}
        assert {one.user for one in ann.tokens()} == {"ann"}
        with pytest.raises(InvalidValue):
            bob.revoke_tokens(sorted(mine))
        assert {one.id for one in ann.tokens()} == mine
    with api.client() as manager:
        assert {"ann", "bob"} <= {one.user for one in manager.tokens()}


def test_submissions_and_tokens_leave_their_marks(api: Api) -> None:
    with api.client(token(api, "eve", "jobs")) as eve:
        job = submit(eve)
        [change] = eve.audit(job=job)
        assert (change.action, change.job, change.user) == ("submitted", job, "eve")
        [made] = eve.tokens()
        assert change.via == f"token {made.id} from 127.0.0.1"
        with pytest.raises(Unauthorized):
            eve.audit(user=ME)
    with api.client() as manager:
        manager.revoke_tokens([made.id])
        marks = manager.audit(user=ME)
    found = {(mark.action, mark.details.get("token")): mark for mark in marks}
    for action in ("token made", "token revoked"):
        assert found[action, made.id].via == f"socket uid {os.getuid()} pid {os.getpid()}"
        assert found[action, made.id].details["for"] == "eve"


def test_secrets_leave_their_marks_and_nothing_of_themselves(api: Api) -> None:
    vault.ensure_key(api.state)
    with api.client(token(api, "ann", "all")) as ann:
        ann.put_secret("key", b"42x")
        ann.put_secret("key", b"43x")
        ann.remove_secret("key")
        marks = [mark for mark in ann.audit() if "secret" in mark.action]
    assert [mark.action for mark in marks] == ["secret set", "secret set", "secret removed"]
    assert {mark.details["name"] for mark in marks} == {"key"}
    assert all(mark.user == "ann" and mark.via.startswith("token ") for mark in marks)
    assert not any(value in str(mark) for mark in marks for value in ("42x", "43x"))
