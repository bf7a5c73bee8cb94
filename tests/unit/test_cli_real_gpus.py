"""Which agent of an embedded cluster gets which cards."""

from __future__ import annotations

import pytest

from hpcmesos.cli.real_gpus import Found, deal
from hpcmesos.errors import ConfigError

FOUR = Found(["a", "b", "c", "d"])


def test_enough_real_cards_are_dealt_out() -> None:
    assert deal({"n1": 2, "n2": 1, "n3": 0}, {}, FOUR) == (
        {"n1": "uuid:a,b", "n2": "uuid:c", "n3": "none"},
        "",
    )


def test_too_few_are_left_alone() -> None:
    settings, said = deal({"n1": 3, "n2": 2}, {}, FOUR)
    assert settings == {"n1": "simulated:3", "n2": "simulated:2"}
    assert said == "5 GPUs are more than this machine's 4: they are SIMULATED"


def test_without_a_driver_nothing_is_said() -> None:
    assert deal({"n1": 2}, {}, Found()) == ({"n1": "simulated:2"}, "")


def test_what_does_not_answer_is_said() -> None:
    sick = Found(["a", "b", "c"], "GPU 3: GPU is lost")
    settings, said = deal({"n1": 4}, {}, sick)
    assert settings == {"n1": "simulated:4"}
    assert "GPU 3: GPU is lost" in said and "SIMULATED" in said
    assert deal({"n1": 3}, {}, sick) == ({"n1": "uuid:a,b,c"}, "careful: GPU 3: GPU is lost")


def test_a_cluster_that_grows_shares_no_card_and_mixes_none() -> None:
    assert deal({"n3": 2}, {"n1": "uuid:a,c", "n2": "none"}, FOUR) == ({"n3": "uuid:b,d"}, "")
    assert deal({"n3": 1}, {"n1": "simulated:2"}, Found()) == ({"n3": "simulated:1"}, "")
    with pytest.raises(ConfigError, match="n3: 3 GPUs wanted, 2 of this machine's are left"):
        deal({"n3": 3}, {"n1": "uuid:a,c"}, FOUR)
