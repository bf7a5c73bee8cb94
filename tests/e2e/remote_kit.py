"""A user on a host of his own: the API over TLS, with a bearer token in a file."""

from __future__ import annotations

import os
import pwd
import subprocess

from hpcmesos.client import Client
from tests.e2e.cluster_kit import HPCMESOS, LiveCluster


class Remote:
    """``user``: as LiveCluster.run(). ``token``: the id of the token that is in the file."""

    def __init__(self, cluster: LiveCluster, user: str | None = None) -> None:
        self.cluster = cluster
        self.user = cluster.user if user is None else user
        self.name = self.user or pwd.getpwuid(os.getuid()).pw_name
        place = cluster.work(self.user)
        self.file = place / "token"
        self.ca = place / "ca.pem"
        self.ca.write_bytes((cluster.state / "master" / "ca" / "ca.pem").read_bytes())
        self.token = ""
        self.next_token()

    @property
    def url(self) -> str:
        return "https://" + (self.cluster.state / "master" / "listen").read_text().strip()

    @property
    def environ(self) -> dict[str, str]:
        return {
            **{name: text for name, text in self.cluster.environ.items() if name != "HPCMESOS_STATE"},
            "HPCMESOS_URL": self.url,
            "HPCMESOS_TOKEN_FILE": str(self.file),
            "HPCMESOS_CA_FILE": str(self.ca),
        }

    def next_token(self) -> str:
        """Puts a new token into the file; the id of the one that was there, which is still good."""
        with self.cluster.client() as client:
            before = {one.id for one in client.tokens()}
            text = client.create_token("user", user=self.name).token
            [made] = {one.id for one in client.tokens()} - before
        new = self.file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(text)
        if self.user:
            entry = pwd.getpwnam(self.user)
            os.chown(new, entry.pw_uid, entry.pw_gid)
        new.replace(self.file)
        last, self.token = self.token, made
        return last

    def client(self) -> Client:
        return Client(url=self.url, token_file=self.file, ca=self.ca)

    def run(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """``hpcmesos WORDS``; of q-commands, too."""
        command = ("env", "-u", "HPCMESOS_STATE", *HPCMESOS, *words)
        return self.cluster.run(*command, user=self.user, stdin=stdin, environ=self.environ)
