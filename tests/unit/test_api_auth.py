"""Identity comes from the connection; roles from the settings."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import cast

import pytest

from hpcmesos.config import MasterSettings
from hpcmesos.errors import RootRefused, Unauthenticated, Unauthorized
from hpcmesos.master import auth
from hpcmesos.master.auth import Caller
from hpcmesos.master.peercred import Peer
from hpcmesos.model import Role
from hpcmesos.queue.store import Store

ME = pwd.getpwuid(os.getuid()).pw_name
NOBODY = pwd.getpwnam("nobody")
NO_STORE = cast(Store, None)


def settings(**values: object) -> MasterSettings:
    place = Path("/nowhere")
    return MasterSettings(database_url="", state=place, socket=place, **values)  # type: ignore[arg-type]


def test_the_uid_of_a_unix_socket_is_turned_into_a_name() -> None:
    caller = auth.identify(Peer(uid=NOBODY.pw_uid, pid=7), None, settings(), NO_STORE)
    assert caller == Caller("nobody", Role.USER, local=True, via=f"socket uid {NOBODY.pw_uid} pid 7")


def test_a_header_does_not_change_who_is_on_a_unix_socket() -> None:
    caller = auth.identify(Peer(uid=NOBODY.pw_uid), "Bearer stolen", settings(), NO_STORE)
    assert caller.user == "nobody"


def test_uid_0_is_no_manager_by_itself() -> None:
    assert auth.identify(Peer(uid=0), None, settings(), NO_STORE).role is Role.USER
    assert auth.identify(Peer(uid=0), None, settings(managers=("root",)), NO_STORE).role is Role.MANAGER


def test_a_uid_without_a_name_is_nobody() -> None:
    with pytest.raises(Unauthenticated, match="4294967"):
        auth.identify(Peer(uid=4294967), None, settings(), NO_STORE)


def test_certificates_name_agents_and_masters() -> None:
    agent = auth.identify(Peer(organization="agent", common_name="node1"), None, settings(), NO_STORE)
    assert (agent.user, agent.node, agent.privileged) == ("", "node1", False)
    assert auth.identify(Peer(organization="master", common_name="m"), None, settings(), NO_STORE).privileged
    for stranger in (Peer(), Peer(organization="other", common_name="x")):
        with pytest.raises(Unauthenticated):
            auth.identify(stranger, None, settings(), NO_STORE)


def test_credentials_of_another_kind_are_refused_before_the_database_is_asked() -> None:
    with pytest.raises(Unauthenticated, match="Bearer"):
        auth.identify(Peer(), "Basic eDp5", settings(), NO_STORE)


def test_who_may_submit() -> None:
    auth.check_may_submit(Caller("ann"), settings())
    auth.check_may_submit(Caller("root"), settings(root_jobs=True))
    auth.check_may_submit(Caller("ann"), settings(single_user="ann"))
    with pytest.raises(RootRefused):
        auth.check_may_submit(Caller("root", Role.MANAGER), settings())
    with pytest.raises(Unauthorized, match="ann"):
        auth.check_may_submit(Caller("bob"), settings(single_user="ann"))
    with pytest.raises(Unauthorized):
        auth.check_may_submit(Caller("", Role.USER, "node1"), settings())


def test_jobs_belong_to_their_owner_and_to_operators() -> None:
    assert Caller("ann").may_touch("ann")
    assert not Caller("ann").may_touch("bob")
    assert Caller("ann", Role.OPERATOR).may_touch("bob")
    assert not Caller("").may_touch("")
