"""Identity comes from the connection; roles from the settings."""

from __future__ import annotations

import grp
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
    return MasterSettings(database_url="", state=place, socket=place, **values)  # type: ignore[arg-type]  # each as its field


def identify(peer: Peer, authorization: str | None, given: MasterSettings) -> Caller:
    return auth.Authority(given, NO_STORE).identify(peer, authorization)


def test_the_uid_of_a_unix_socket_is_turned_into_a_name() -> None:
    caller = identify(Peer(uid=NOBODY.pw_uid, pid=7), None, settings())
    assert caller == Caller("nobody", Role.USER, local=True, via=f"socket uid {NOBODY.pw_uid} pid 7")


def test_a_header_does_not_change_who_is_on_a_unix_socket() -> None:
    caller = identify(Peer(uid=NOBODY.pw_uid), "Bearer stolen", settings())
    assert caller.user == "nobody"


def test_uid_0_is_no_manager_by_itself() -> None:
    assert identify(Peer(uid=0), None, settings()).role is Role.USER
    assert identify(Peer(uid=0), None, settings(managers=("root",))).role is Role.MANAGER


def test_a_uid_without_a_name_is_nobody() -> None:
    with pytest.raises(Unauthenticated, match="4294967"):
        identify(Peer(uid=4294967), None, settings())


def test_certificates_name_agents_and_masters() -> None:
    agent = identify(Peer(organization="agent", common_name="node1"), None, settings())
    assert (agent.user, agent.node, agent.privileged) == ("", "node1", False)
    assert identify(Peer(organization="master", common_name="m"), None, settings()).privileged
    for stranger in (Peer(), Peer(organization="other", common_name="x")):
        with pytest.raises(Unauthenticated):
            identify(stranger, None, settings())


def test_credentials_of_another_kind_are_refused_before_the_database_is_asked() -> None:
    with pytest.raises(Unauthenticated, match="Bearer"):
        identify(Peer(), "Basic eDp5", settings())


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


def test_groups_give_roles() -> None:
    group = grp.getgrgid(NOBODY.pw_gid).gr_name
    peer = Peer(uid=NOBODY.pw_uid)
    assert identify(peer, None, settings(operator_groups=(group,))).role is Role.OPERATOR
    assert (
        identify(peer, None, settings(operator_groups=(group,), manager_groups=(group,))).role is Role.MANAGER
    )
    assert identify(peer, None, settings(manager_groups=("no such group",))).role is Role.USER


def test_schemes_that_the_site_does_not_take_are_refused() -> None:
    for header in ("MUNGE MUNGE:AwQ=:", "Basic eDp5", "bearer", "Bearer"):
        with pytest.raises(Unauthenticated):
            auth.Authority(settings(), NO_STORE).identify(Peer(), header.replace("earer", "eare r"))
