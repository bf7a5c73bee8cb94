"""What a node says that it has, and where it puts cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcmesos import wire
from hpcmesos.agent import inventory, isolation
from hpcmesos.config import AgentSettings
from hpcmesos.errors import ConfigError, StateError
from hpcmesos.launch import limits


def test_simulated_gpus_are_stable_and_differ_by_cluster_node_and_index() -> None:
    gpus = inventory.simulated("simulated:2", "c", "n")
    assert gpus == inventory.simulated("simulated:2", "c", "n")
    others = inventory.simulated("simulated:1", "c", "m") + inventory.simulated("simulated:1", "d", "n")
    assert len({g.uuid for g in gpus + others}) == 4
    assert all(g.simulated and g.uuid.startswith("SIM-") for g in gpus)


@pytest.mark.parametrize("setting", ["", "simulated", "simulated:x", "4"])
def test_a_setting_that_is_none_is_named(setting: str) -> None:
    with pytest.raises(ConfigError, match="gpus"):
        inventory.simulated(setting, "c", "n")


def card(name: str, profile: str = "", parent: str = "") -> wire.Gpu:
    return wire.Gpu(uuid=name, index=0, model="m", profile=profile, parent=parent)


WHOLE = [card("GPU-a"), card("GPU-b")]
PARTS = [card(f"MIG-{n}", profile, "GPU-c") for n, profile in enumerate(["1g.10gb", "3g.40gb", "3g.40gb"])]


@pytest.mark.parametrize(
    ("setting", "taken", "others"),
    [
        ("auto", "GPU-a GPU-b", "1 x 1g.10gb, 2 x 3g.40gb"),
        ("uuid:GPU-b,GPU-x", "GPU-b", ""),
        ("uuid:MIG-0,MIG-x", "MIG-0", ""),
        ("uuid:GPU-c", "MIG-1 MIG-2", "1 x 1g.10gb"),
        ("mig:1g.10gb", "MIG-0", ""),
        ("mig:7g.80gb", "", ""),
    ],
)
def test_gpus_of_one_kind_are_chosen(setting: str, taken: str, others: str) -> None:
    chosen, left = inventory.choose(setting, WHOLE + PARTS)
    assert (" ".join(gpu.uuid for gpu in chosen), left) == (taken, others)


def test_the_kind_is_that_of_the_first_answer(tmp_path: Path) -> None:
    """A card that answers late, or a new majority, makes no strangers of GPUs that jobs may have."""
    ours = inventory.Ours("auto", inventory.Claims(tmp_path))
    assert ours.of([], ()) == set(), "nothing is decided yet"
    assert ours.of(PARTS, ()) == {"MIG-1", "MIG-2"}
    assert ours.of(WHOLE + PARTS, ()) == {"MIG-1", "MIG-2"}
    assert ours.of(WHOLE + PARTS[:2], ()) == {"MIG-1"}
    more = [card(f"MIG-{n}", "1g.10gb", "GPU-d") for n in range(7, 10)]
    assert ours.of(PARTS + more, ()) == {"MIG-1", "MIG-2"}
    assert ours.of(WHOLE, ()) == set()
    ours.close()
    other = inventory.Ours("auto", inventory.Claims(tmp_path))
    assert other.of(WHOLE, ()) == {"GPU-a", "GPU-b"}
    assert other.of(PARTS, ()) == set()
    other.close()


def test_the_kind_is_what_jobs_have(tmp_path: Path) -> None:
    """Of an agent that starts beside them."""
    ours = inventory.Ours("auto", inventory.Claims(tmp_path))
    assert ours.of(WHOLE + PARTS, {"MIG-0", "SIM-x"}) == {"MIG-0"}
    assert ours.of(WHOLE + PARTS, ()) == {"MIG-0"}
    ours.close()


def test_what_is_shared_is_nobodys_alone(tmp_path: Path) -> None:
    first, second = inventory.Claims(tmp_path), inventory.Claims(tmp_path)
    assert first.claim("MIG-1", "GPU-c") and second.claim("MIG-2", "GPU-c")
    assert not first.claim("GPU-c"), "the other has an instance of it"
    second.close()
    assert first.claim("MIG-2", "GPU-c")
    first.close()


def test_an_instance_that_is_not_got_takes_nothing_of_its_card(tmp_path: Path) -> None:
    first, second, third = (inventory.Claims(tmp_path) for _ in range(3))
    assert first.claim("MIG-1", "GPU-c")
    assert not second.claim("MIG-1", "GPU-c")
    first.close()
    assert third.claim("GPU-c")
    for claims in (second, third):
        claims.close()


def test_no_feature_of_a_sites_own_looks_like_mig(tmp_path: Path) -> None:
    """It would make whole cards instances."""
    settings = AgentSettings(
        node="n", master="unix:/nowhere", state=tmp_path, sockets=tmp_path, gpus="none", features=("mig-off",)
    )
    with pytest.raises(ConfigError, match=r"^features: 'mig-off': .* give it another$"):
        inventory.collect(settings, "c")


def test_a_card_and_its_instances_exclude_each_other(tmp_path: Path) -> None:
    """Of agents on one host; those that have instances share the card."""
    first, second, third = (inventory.Claims(tmp_path) for _ in range(3))
    assert first.claim("MIG-1", "GPU-c") and second.claim("MIG-2", "GPU-c")
    assert not second.claim("MIG-1", "GPU-c")
    assert not third.claim("GPU-c"), "its instances are taken"
    first.close()
    second.close()
    assert third.claim("GPU-c")
    assert not first.claim("MIG-1", "GPU-c"), "the whole card is"
    third.close()


def test_the_machine_has_something() -> None:
    assert inventory.cpus() >= 1 and inventory.memory() > 1 << 20
    assert inventory.load()[1] > 0 and len(inventory.boot_id()) == 36


def test_a_claim_is_one_holders(tmp_path: Path) -> None:
    first, second = inventory.Claims(tmp_path), inventory.Claims(tmp_path)
    assert first.claim("GPU-a") and first.claim("GPU-a")
    assert not second.claim("GPU-a") and second.claim("GPU-b")
    first.close()
    assert second.claim("GPU-a")
    second.close()


def test_a_directory_of_locks_that_others_may_change_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("open", "link", "file"):
        with pytest.raises(StateError, match="remove it"):
            inventory.Claims(tmp_path / name).claim("GPU-a")
    made = inventory.Claims(tmp_path / "new" / "er")
    assert made.claim("GPU-a")
    made.close()
    assert (tmp_path / "new" / "er").stat().st_mode & 0o777 == 0o700


HYBRID = """31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:9 - cgroup2 cgroup2 rw
"""


def test_finds_v2_beside_v1(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(HYBRID)
    assert isolation.find_v2(mountinfo) == Path("/sys/fs/cgroup/uni fied")
    mountinfo.write_text(HYBRID.replace("fied rw", "fied ro"))
    assert isolation.find_v2(mountinfo) is None
    assert isolation.choose("auto", "c", "n", mountinfo) is None


def test_cgroups_as_set(tmp_path: Path) -> None:
    assert isolation.choose("none", "c", "n") is None
    with pytest.raises(ConfigError, match=r"no writable directory of cgroup v2 with cgroup\.kill"):
        isolation.choose("/proc/nowhere", "c", "n")


def test_open_files_are_limited_without_cgroups_too() -> None:
    found = isolation.limits(("memory", "nofile=4096"), None, "c", "n")
    assert found == {"nofile": 4096}
    assert isolation.enforced({"cgroup": None, "limits": found}) == ("nofile",)
    assert limits.descriptors(found, (1024, 524288)) == (1024, 4096)
    assert limits.descriptors({"nofile": 512}, (1024, 524288)) == (512, 512)
    assert limits.descriptors({}, (1024, 524288)) == (1024, 524288)


@pytest.mark.parametrize("setting", ["nofile", "nofile=many", "nofile=10", "pids", "memory=1"])
def test_limits_that_are_none(setting: str) -> None:
    with pytest.raises(ConfigError, match="limits: "):
        isolation.limits((setting,), None, "c", "n")
