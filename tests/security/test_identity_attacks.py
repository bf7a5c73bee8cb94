"""Attacks on who one is: forged fields and headers, tokens, JWTs, certificates, join tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import jwt
import pytest

from hpcmesos.client import Client
from hpcmesos.master import api as api_module
from hpcmesos.master import auth, oidc, pki
from hpcmesos.master.auth import Authority, Caller
from hpcmesos.master.peercred import Peer
from hpcmesos.master.services import acceptance, admission, control, hosts, outputs, shepherds, tokens
from hpcmesos.pbs import submission
from hpcmesos.queue import store as store_module
from hpcmesos.queue.deliveries import Deliveries, DeliveryRecord
from hpcmesos.queue.store import Store
from tests.integration.name_kit import naming
from tests.integration.test_api_identity import FORGERIES
from tests.security.api_stage import STRANGER, VICTIM, ApiStage
from tests.security.cases import Case, Switch, Told, Try, both, check, known_by, of, replaced

HERE = "127.0.0.1"  # from where all come
changes = replaced(auth, "check_scope", lambda caller, wanted, what: None)


# --- fields and headers that say who one is: a job of the victim's is what is wanted


def forging(header: str) -> Try[ApiStage]:
    """The stranger deletes a job of the victim's and says that he is the victim."""

    def run(stage: ApiStage) -> Told:
        token = stage.token(STRANGER)
        status, text = stage.request(
            "DELETE", f"/v1/jobs/{stage.waiting}", headers={header: VICTIM}, token=token
        )
        return Told(status == 200, text)

    return run


def rightful(stage: ApiStage) -> Told:
    return stage.command(VICTIM, "qdel", stage.waiting)


def calling_himself(stage: ApiStage) -> Told:
    environ = {"LOGNAME": VICTIM, "USER": VICTIM, "HOME": "/"}
    return stage.command(STRANGER, "qdel", stage.waiting, environ=environ)


def believing(header: str) -> Switch:
    """A server that believes a header, as behind a proxy that is not there."""
    real = api_module.caller_of

    def caller(request: Any) -> Caller:
        named = request.headers.get(header)
        return Caller(named) if named else real(request)

    return known_by(caller)


def believing_environ(patch: pytest.MonkeyPatch) -> None:
    real = control.qdel

    def qdel(site: Any, caller: Caller, request: Any) -> Any:
        return real(site, Caller(request.environ["LOGNAME"]), request)

    patch.setitem(api_module.COMMANDS, "qdel", qdel)  # type: ignore[arg-type]  # a dict


def origin(user: str) -> Try[ApiStage]:
    """PBS_O_LOGNAME, by which scripts know whose job they serve, is the victim's."""

    def run(stage: ApiStage) -> Told:
        told = stage.command(user, "qsub", "-v", f"PBS_O_LOGNAME={VICTIM}", script=b"true\n")
        job = stage.api.store.job(int(told.said.split(".")[0]))
        assert job is not None
        named = job.submission["environment"]["PBS_O_LOGNAME"]
        return Told(named == VICTIM, f"PBS_O_LOGNAME is {named}")

    return run


def from_host(queue: str, claimed: str, reverse: str = "") -> Try[ApiStage]:
    """A job for a queue that takes those of some hosts, by a client that says it is ``claimed``.

    Here that is: ``friend``. The address of ``login1`` is another, and ``login1.fiend.example`` is the client's own.
    """
    forward = {"friend": HERE, "friend.example": HERE, "login1": "192.0.2.1", "login1.fiend.example": HERE}
    forward |= {"trusted.example": "192.0.2.2", "fiend.trusted.example": "192.0.2.3"}

    def run(stage: ApiStage) -> Told:
        body = {"argv": ["-q", queue], "script": "dHJ1ZQo=", "cwd": "/tmp", "host": claimed}
        given = {"Content-Type": "application/json"}
        token = stage.token(STRANGER)
        with pytest.MonkeyPatch.context() as patch:
            naming(patch, forward, {HERE: reverse or claimed})
            patch.setattr(hosts, "_PATIENCE", 30.0)
            status, text = stage.request("POST", "/v1/commands/qsub", json.dumps(body).encode(), given, token)
        return Told(status < 300, text)

    return run


def believing_host(name: str) -> Switch:
    """What a client says of its host is certain, with its first part."""
    return replaced(acceptance, "peer_of", lambda caller: name)


def asking_how_it_is_called(patch: pytest.MonkeyPatch) -> None:
    """What bars asks the name service for the names of an address, as what lets in does."""
    real = hosts.Whereabouts.fits
    patch.setattr(hosts.Whereabouts, "fits", lambda self, entry, bars=False: real(self, entry))


def only_those_let_in(patch: pytest.MonkeyPatch) -> None:
    """Entries that bar are passed over."""
    real = admission._lets_in
    patch.setattr(
        admission,
        "_lets_in",
        lambda entries, fits: real(",".join(e for e in entries.split(",") if e[0] != "-"), fits),
    )


def trusting_origin(patch: pytest.MonkeyPatch) -> None:
    real = submission.origin_variables

    def forged(*words: Any) -> dict[str, str]:
        found = real(*words)
        del found["PBS_O_LOGNAME"]
        return found

    patch.setattr(submission, "origin_variables", forged)


# --- tokens


def shown(name: str, action: Callable[[Client, ApiStage], Any] | None = None) -> Try[ApiStage]:
    """A call with one of the stage's credentials; to delete a job of the victim's, unless it is another."""

    def run(stage: ApiStage) -> Told:
        with stage.with_token(stage.credentials.get(name, name)) as client:
            return of(lambda: (action or delete)(client, stage))

    return run


def delete(client: Client, stage: ApiStage) -> Any:
    return client.delete(stage.waiting)


def qsub(client: Client, stage: ApiStage) -> Any:
    return client.command("qsub", [], script=b"true\n", cwd="/tmp", environ={})


def make_token(client: Client, stage: ApiStage) -> Any:
    return client.create_token("user")


def manage(client: Client, stage: ApiStage) -> Any:
    return client.create_token("user", user=VICTIM)


def joins(credential: str, node: str, named: str = "") -> Try[ApiStage]:
    """An agent that asks for the certificate of ``node``; ``named``: the node of its certificate request."""

    def run(stage: ApiStage) -> Told:
        _, request = pki.create_csr(named or node)
        body = {"token": f"x.{stage.credentials[credential]}", "node": node, "csr": request}
        status, text = stage.request(
            "POST", "/v1/nodes/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return Told(status == 201, text)

    return run


def good_for(*conditions: int) -> Switch:
    """Tokens are good when only these of the four conditions of a good token hold: hash, kind, end, revocation."""
    real = store_module._good
    return replaced(
        store_module, "_good", lambda token, kind: tuple(real(token, kind)[i] for i in conditions)
    )


def believing_any_token(self: Store, token: str, node: str, via: str = "", kind: str = "join") -> Any:
    return None


def sloppy(self: Store, token: str) -> Any:
    """As a beginner writes it."""
    from sqlalchemy import text

    with store_module.begin(self._single) as connection:
        columns = ", ".join(f'"{column.name}"' for column in store_module._TOKEN_COLUMNS)
        wanted = f"SELECT {columns} FROM tokens WHERE \"user\" = 'nobody' AND encode(hash, 'hex') = '{token}'"
        row = connection.execute(text(wanted)).first()
    return store_module._token_record(row)


def keeping_roles(patch: pytest.MonkeyPatch) -> None:
    def by_token(self: Authority, credential: str, peer: Any) -> Caller:
        return self._user(self.store.verify_token(credential).user or "")

    patch.setattr(Authority, "_by_token", by_token)


# --- certificates


def certified(
    organization: str, name: str, action: Callable[[Client, ApiStage], Any], of_ca: str = "ours"
) -> Try[ApiStage]:
    """A call by who shows a certificate in place of a token; ``of_ca``: whose."""

    def run(stage: ApiStage) -> Told:
        place = stage.api.state / "made" / of_ca
        ca = pki.ensure_ca(stage.api.state if of_ca == "ours" else place)
        paths = pki.ensure_certificate(ca, place / f"{organization}-{name}", name, organization, [])
        with stage.with_token(None) as client:
            assert client._masters._ssl is not None
            client._masters._ssl.load_cert_chain(*paths)
            return of(lambda: action(client, stage))

    return run


def by_gateway(*users: str, organization: str = "gateway", name: str = "login1") -> Try[ApiStage]:
    """On one connection: who it shows such a certificate vouches for these users, and deletes the victim's job."""

    def run(stage: ApiStage) -> Told:
        given = [("PUT", f"/v1/gateway/user/{user}") for user in users]
        *_, (status, text) = exchanged(
            stage, organization, name, *given, ("DELETE", f"/v1/jobs/{stage.waiting}")
        )
        return Told(status == 200, text)

    return run


def exchanged(
    stage: ApiStage, organization: str, name: str, *requests: tuple[str, str], body: bytes | None = None
) -> list[tuple[int, str]]:
    """Status and text of each, over one connection with that certificate."""
    place = stage.api.state / "made" / "ours"
    ca = pki.ensure_ca(stage.api.state)
    paths = pki.ensure_certificate(ca, place / f"{organization}-{name}", name, organization, [])
    answers = []
    with stage.with_token(None) as client:
        assert client._masters._ssl is not None
        client._masters._ssl.load_cert_chain(*paths)
        with closing(client._masters.open()) as connection:
            for method, path in requests:
                connection.request(method, path, body)
                response = connection.getresponse()
                answers.append((response.status, response.read().decode(errors="replace")))
    return answers


def vouching_always(caller: Caller, peer: Peer, user: str) -> None:
    peer.vouched.insert(0, user)


def whoever_is_vouched_for(request: Any) -> Caller:
    """Whatever certificate he shows who vouches."""
    peer = request.scope["state"]["peer"]
    return Caller(peer.vouched[0]) if peer.vouched else Caller("", gateway="login1")


def sends_output(node: str) -> Try[ApiStage]:
    """A node sends what the victim's job on node1 has written."""

    def run(stage: ApiStage) -> Told:
        path = f"/v1/outputs/{quote(f'{stage.running}#1')}/stdout?offset=0&total=6"
        [(status, text)] = exchanged(stage, "agent", node, ("PUT", path), body=b"forged")
        return Told(status == 200, text)

    return run


def fetches_output(gateway: str) -> Try[ApiStage]:
    """A gateway fetches output that login1 has to write."""

    def run(stage: ApiStage) -> Told:
        attempt = f"{stage.running}#1"
        stage.site.logs.take(attempt, "stdout", 0, b"secret", 6)
        stage.api.store.deliveries.add(
            DeliveryRecord(
                attempt=attempt, stream="stdout", gateway="login1", owner=VICTIM, path="/tmp/x", name="x",
                umask=0o077, append=False, size=6,
            )
        )  # fmt: skip
        path = f"/v1/outputs/{quote(attempt)}/stdout"
        [(_, text)] = exchanged(stage, "gateway", gateway, ("GET", path))
        return Told(text == "secret", text)

    return run


# --- JWTs


def presented(name: str) -> Try[ApiStage]:
    """A job by who shows that token of the provider; without a name: a good one."""

    def run(stage: ApiStage) -> Told:
        token = FORGERIES[name](stage.issuer) if name else stage.issuer.token()
        with stage.with_token(token) as client:
            return of(lambda: qsub(client, stage))

    return run


def unverified(patch: pytest.MonkeyPatch) -> None:
    """Claims are believed as they stand, whatever signature is under them."""
    real = jwt.decode
    patch.setattr(auth, "check_may_submit", lambda caller, settings: None)  # one of them is root's
    patch.setattr(oidc, "ALGORITHMS", (*oidc.ALGORITHMS, "none", "HS256"))
    patch.setattr(oidc.Provider, "_key", lambda self, kid: None)
    patch.setattr(
        oidc.jwt, "decode", lambda token, *words, **more: real(token, options={"verify_signature": False})
    )
    identity = oidc.Provider._identity
    patch.setattr(
        oidc.Provider, "_identity", lambda self, claims: identity(self, {**claims, "exp": time.time() + 60})
    )


CASES = [
    Case("X-Remote-User", forging("X-Remote-User"), rightful, believing("X-Remote-User")),
    Case("X-Forwarded-User", forging("X-Forwarded-User"), rightful, believing("X-Forwarded-User")),
    Case("LOGNAME of the victim", calling_himself, rightful, believing_environ),
    Case("PBS_O_LOGNAME by -v", origin(STRANGER), origin(VICTIM), trusting_origin, harmless=True),
    Case(
        "a queue for another host's users",
        from_host("trusted", "trusted.example"),
        from_host("here", "trusted.example"),
        believing_host("trusted.example"),
    ),
    Case(
        "a host's short name in a foreign domain",
        from_host("login1", "login1.fiend.example"),
        from_host("friend", "friend.example"),
        believing_host("login1.fiend.example"),
    ),
    Case(
        "user@login* from a foreign domain",
        from_host("login-users", "login1.fiend.example"),
        from_host("friend-users", "friend.example"),
        replaced(hosts, "_has", lambda name, address: True),
    ),
    Case(
        "a wildcard's domain by a reverse entry of one's own",
        from_host("trusted-domain", "x", "fiend.trusted.example"),
        from_host("example-domain", "x", "friend.example"),
        replaced(hosts, "_has", lambda name, address: True),
    ),
    Case(
        "user@*.domain that is barred, by a reverse entry of one's own",
        from_host("no-fiends", "x", "friend.example"),
        from_host("no-tens", "x", "friend.example"),
        asking_how_it_is_called,
    ),
    Case("a host that is barred", from_host("not-here", "x"), from_host("not-there", "x"), only_those_let_in),
    Case("a revoked token, replayed", shown("revoked"), shown("good"), good_for(0, 1, 2)),
    Case("a token made by a revoked one", shown("child"), shown("good"), good_for(0, 1, 2)),
    Case("an expired token", shown("expired"), shown("good"), good_for(0, 1, 3)),
    Case(
        "a join token as a user's",
        shown("join"),
        shown("good"),
        both(
            good_for(0, 2, 3),
            replaced(
                Authority, "_by_token", lambda self, c, p: Caller(self.store.verify_token(c).user or VICTIM)
            ),
        ),
    ),
    Case("a user's token to join", joins("good", "node9"), joins("join", "node9"), good_for(0, 2, 3)),
    Case(
        "SQL in a token",
        shown("' OR \"user\" = 'nobody' AND scope = 'all' AND kind = 'user' --"),
        shown("good"),
        replaced(Store, "verify_token", sloppy),
    ),
    Case("a job by a token for reading", shown("read", qsub), shown("jobs", qsub), changes),
    Case("a deletion by a token for reading", shown("read"), shown("jobs"), changes),
    Case("a token made by one for jobs", shown("jobs", make_token), shown("good", make_token), changes),
    Case(
        "a manager's token for jobs that manages",
        shown("manager's for jobs", manage),
        shown("manager", manage),
        both(changes, keeping_roles),
    ),
    Case(
        "a join token of another node",
        joins("join of node7", "node9"),
        joins("join of node7", "node7"),
        replaced(Store, "consume_join_token", believing_any_token),
    ),
    Case(
        "a join token, used again",
        joins("used join", "node9"),
        joins("join", "node9"),
        replaced(Store, "consume_join_token", believing_any_token),
    ),
    Case(
        "a certificate request for another node",
        joins("join", "node9", named="node1"),
        joins("join", "node9"),
        replaced(pki, "common_name_of", lambda subject: "node9"),
    ),
    Case(
        "a node's name that is a path",
        joins("join", "../../tls/master"),
        joins("join", "node9"),
        replaced(tokens, "check_node", lambda name: name),
    ),
    Case(
        "a job by an agent's certificate",
        certified("agent", "node1", qsub),
        shown("good", qsub),
        replaced(auth, "check_may_submit", lambda caller, settings: None),
    ),
    Case(
        "another's job ended by an agent's certificate",
        certified("agent", "node1", delete),
        certified("master", "master2", delete),
        replaced(Caller, "may_touch", lambda self, owner: True),
    ),
    Case(
        "a second user on a gateway's connection",
        by_gateway(STRANGER, VICTIM),
        by_gateway(VICTIM),
        replaced(outputs, "vouch", vouching_always),
    ),
    Case(
        "a user for whom a node vouches",
        by_gateway(VICTIM, organization="agent", name="node1"),
        by_gateway(VICTIM),
        both(replaced(outputs, "vouch", vouching_always), known_by(whoever_is_vouched_for)),
    ),
    Case(
        "output of a job by a node that did not run it",
        sends_output("node2"),
        sends_output("node1"),
        replaced(shepherds, "head_of", lambda site, job, number: SimpleNamespace(name="node2")),
    ),
    Case(
        "output for another gateway",
        fetches_output("login2"),
        fetches_output("login1"),
        replaced(Deliveries, "waits", lambda self, gateway, attempt, stream: True),
    ),
    *(
        Case(f"JWT: {name}", presented(name), presented(""), unverified)
        for name in (
            "no algorithm",
            "expired",
            "another audience",
            "another issuer",
            "a changed body",
            "another key",
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attack(case: Case[ApiStage], stage: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, stage, monkeypatch)


def test_nothing_is_signed_without_a_token(stage: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = []
    sign = pki._issue
    monkeypatch.setattr(pki, "_issue", lambda *asked: (signed.append(asked[1]), sign(*asked))[1])
    for credential in ("used join", "join of node7", "good", "revoked"):
        assert not joins(credential, "node9")(stage).done
    assert signed == []
    assert joins("join", "node9")(stage).done
    assert signed == ["node9"]
