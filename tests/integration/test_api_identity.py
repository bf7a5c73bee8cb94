"""Users by the site's own means: JWTs of an OpenID provider, MUNGE. Real provider's documents, real munged."""

from __future__ import annotations

import base64
import http.server
import json
import os
import pwd
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hpcmesos import munge
from hpcmesos.client import Client
from hpcmesos.errors import ConfigError, Unauthenticated, Unauthorized
from hpcmesos.master import oidc
from tests.integration.leader_kit import wait_until

if TYPE_CHECKING:
    from .api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]

AUDIENCE = "hpcmesos-of-this-site"
ME = pwd.getpwuid(os.getuid()).pw_name


class Issuer:
    """An OpenID provider: its discovery document and keys over HTTP, tokens by ``token``."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.asked = 0
        self.add("first")
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path == "/.well-known/openid-configuration"
                content = json.dumps(issuer.discovery() if known else issuer.key_set()).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, kid: str, key: Any = None) -> None:
        self.keys[kid] = key or rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def discovery(self) -> dict[str, Any]:
        return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}

    def key_set(self) -> dict[str, Any]:
        self.asked += 1
        found = []
        for kid, key in self.keys.items():
            kind = (
                jwt.algorithms.RSAAlgorithm
                if isinstance(key, rsa.RSAPrivateKey)
                else jwt.algorithms.ECAlgorithm
            )
            found.append({**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"})
        return {"keys": found}

    def token(self, kid: str = "first", key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        given = {
            "iss": self.url,
            "aud": AUDIENCE,
            "exp": int(time.time()) + 600,
            "preferred_username": "ann",
            **claims,
        }
        return jwt.encode(
            {name: value for name, value in given.items() if value is not None},
            key or self.keys[kid],
            algorithm=algorithm,
            headers={"kid": kid},
        )


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def munged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A munged of our own; answers its socket."""
    program = shutil.which("munged", path="/usr/sbin:/usr/bin:/sbin")
    if program is None:
        pytest.skip("no munged")
    place = Path("/tmp") / f"munge-{os.getpid()}"  # a unix socket's path is short
    place.mkdir(mode=0o755)
    (place / "key").touch(mode=0o600)
    (place / "key").write_bytes(os.urandom(128))
    options = {name: place / name for name in ("socket", "key-file", "log-file", "pid-file", "seed-file")}
    options["key-file"] = place / "key"
    words = [f"--{name}={path}" for name, path in options.items()]
    process = subprocess.Popen([program, "--foreground", "--force", *words], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (place / "socket").exists(), "munged's socket")
        yield str(place / "socket")
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def api_settings(issuer: Issuer, munged: str) -> dict[str, object]:
    return {
        "managers": (ME,),
        "root_jobs": True,
        "operator_groups": ("gpu-operators",),
        "oidc_issuer": issuer.url,
        "oidc_audience": AUDIENCE,
        "oidc_project_claim": "project",
        "munge": True,
        "munge_socket": munged,
    }


def test_a_token_of_the_provider_names_user_groups_and_project(api: Api, issuer: Issuer) -> None:
    with api.client(issuer.token(project="vision")) as ann:
        job = ann.command("qsub", [], script=b"true\n", environ={}).stdout.strip()
        assert ann.job(job).owner == "ann"
        assert ann.audit(job=job)[0].via == "JWT from 127.0.0.1"
    record = api.store.job(int(job.split(".")[0]))
    assert record is not None
    assert record.project == "vision"
    with api.client(issuer.token(preferred_username="bob")) as bob, pytest.raises(Unauthorized):
        bob.delete(job)
    with api.client(issuer.token(preferred_username="eve", groups=["gpu-operators"])) as operator:
        operator.delete(job)


def forged_none(issuer: Issuer) -> str:
    _, body, _ = issuer.token().split(".")
    header = base64.urlsafe_b64encode(b'{"alg":"none","kid":"first"}').rstrip(b"=").decode()
    return f"{header}.{body}."


def forged_by_the_public_key(issuer: Issuer) -> str:
    """The classic: HMAC with the published key as the secret."""
    import hashlib
    import hmac

    public = issuer.keys["first"].public_key()
    secret = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _, body, _ = issuer.token().split(".")
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"first"}').rstrip(b"=").decode()
    mac = hmac.new(secret, f"{header}.{body}".encode(), hashlib.sha256).digest()
    return f"{header}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


FORGERIES = {
    "expired": lambda i: i.token(exp=int(time.time()) - 60),
    "no end": lambda i: i.token(exp=None),
    "another audience": lambda i: i.token(aud="another service"),
    "no audience": lambda i: i.token(aud=None),
    "another issuer": lambda i: i.token(iss="http://127.0.0.1:1"),
    "no user": lambda i: i.token(preferred_username=None),
    "a user that is no name": lambda i: i.token(preferred_username="ann\nroot"),
    "another key": lambda i: i.token(key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    "an unknown key": lambda i: i.token(
        kid="strange", key=rsa.generate_private_key(public_exponent=65537, key_size=2048)
    ),
    "not yet": lambda i: i.token(nbf=int(time.time()) + 600),
    "no algorithm": forged_none,
    "the public key as a secret": forged_by_the_public_key,
    "nonsense": lambda i: "a.b.c",
    "a changed body": lambda i: ".".join(
        (i.token().split(".")[0], i.token(preferred_username="root").split(".")[1], i.token().split(".")[2])
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_or_misdirected_token_is_refused(api: Api, issuer: Issuer, name: str) -> None:
    before = api.counts()
    with api.client(FORGERIES[name](issuer)) as client, pytest.raises(Unauthenticated) as refused:
        client.command("qsub", [], script=b"true\n", environ={})
    assert len(str(refused.value).splitlines()) == 1
    assert api.counts() == before


def test_keys_are_rotated_without_a_restart_and_unknown_ones_are_not_asked_for_again_and_again(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(oidc.time, "monotonic", lambda: now[0])
    provider = oidc.Provider(issuer.url, AUDIENCE)
    assert provider.verify(issuer.token()).user == "ann"
    asked = issuer.asked
    issuer.add("second", ec.generate_private_key(ec.SECP256R1()))
    second = issuer.token("second", algorithm="ES256")
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            provider.verify(second)
    assert issuer.asked == asked
    now[0] += 11
    assert provider.verify(second).user == "ann"
    old = issuer.keys.pop("first")
    withdrawn = issuer.token("first", old)
    assert provider.verify(withdrawn).user == "ann"  # what is known serves for five minutes
    now[0] += 301
    with pytest.raises(Unauthenticated):
        provider.verify(withdrawn)
    issuer.add("first", old)


def test_a_provider_that_is_away_does_not_stop_those_who_are_known() -> None:
    issuer = Issuer()
    provider = oidc.Provider(issuer.url, AUDIENCE)
    token = issuer.token()
    provider.verify(token)
    issuer.close()
    provider._fetched -= 1000
    provider._looked -= 1000
    assert provider.verify(token).user == "ann"
    provider._fetched -= 100_000
    provider._looked -= 1000
    with pytest.raises(Unauthenticated):
        provider.verify(token)


def test_a_provider_is_asked_over_https_only() -> None:
    with pytest.raises(ConfigError):
        oidc.Provider("http://id.example.org", AUDIENCE)
    with pytest.raises(ConfigError):
        oidc.Provider("https://id.example.org", "")


def test_munge_names_the_user(api: Api, munged: str) -> None:
    with Client(url=api.url, ca=api.ca, munge=True, munge_socket=munged) as client:
        job = client.command("qsub", [], script=b"true\n", environ={}).stdout.strip()
        assert client.job(job).owner == ME
        assert client.audit(job=job)[0].via == "MUNGE from 127.0.0.1"


def test_a_munge_credential_is_good_once_and_for_its_request(api: Api, munged: str) -> None:
    def ask(credential: str, path: str) -> int:
        with Client(url=api.url, ca=api.ca, token="x") as client:
            connection = client._masters.open()
            connection.request("GET", path, headers={"Authorization": f"MUNGE {credential}"})
            status = connection.getresponse().status
            connection.close()
            return status

    credential = munge.encode(b"GET /v1/nodes", munged)
    assert ask(credential, "/v1/nodes") == 200
    assert ask(credential, "/v1/nodes") == 401
    assert ask(munge.encode(b"GET /v1/nodes", munged), "/v1/jobs") == 401
    assert ask("MUNGE:AwQFAA==:", "/v1/nodes") == 401


def test_a_munged_that_is_away_is_no_refusal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MUNGE"):
        munge.encode(b"x", str(tmp_path / "none"))
