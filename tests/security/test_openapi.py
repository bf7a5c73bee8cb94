"""schemathesis on the whole OpenAPI: whatever is sent, no error of ours, and no status that is not documented."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode

from hpcmesos.master.api import build_app
from tests.security.api_stage import STRANGER, ApiStage

_CONFIG = SchemathesisConfig.from_dict(
    {
        "generation": {
            "allow-extra-parameters": False
        },  # as everywhere, those that nobody knows are passed over
        "checks": {
            # What a schema cannot say, like what makes a resource or a directive, is refused with 400.
            "positive_data_acceptance": {"expected-statuses": ["2xx", 400, 401, 403, 404, 409, 503]},
            "negative_data_rejection": {"expected-statuses": [400, 401, 403, 404, 405, 409, 413]},
        },
    }
)


def _operations() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Litestar's, about its next release
        document = build_app(None, None).openapi_schema.to_schema()  # type: ignore[arg-type]  # nothing is served
    found = schemathesis.openapi.from_dict(document, config=_CONFIG)
    return {one.ok().label: one.ok() for one in found.get_all_operations()}


OPERATIONS = _operations()


@pytest.fixture(scope="module")
def connections() -> Iterator[requests.Session]:
    """They stay open between requests: a handshake costs more than most answers."""
    with requests.Session() as session:
        yield session


@dataclass(frozen=True, slots=True)
class Trier:
    """Sends what is made up, with a user's token (``shown``) or without any credential."""

    stage: ApiStage
    connections: requests.Session
    shown: bool

    def try_out(self, label: str, mode: GenerationMode, examples: int) -> None:
        token = self.stage.token(STRANGER)
        headers = {"Authorization": f"Bearer {token}"} if self.shown else {}

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
        def try_it(case: Any) -> None:
            api = self.stage.api
            case.call_and_validate(
                base_url=api.url, session=self.connections, headers=headers, verify=str(api.ca), timeout=30
            )

        try_it()


@pytest.fixture(params=[True, False], ids=["with a credential", "without one"])
def trier(request: pytest.FixtureRequest, stage: ApiStage, connections: requests.Session) -> Trier:
    return Trier(stage, connections, request.param)


FEW, MANY = 2, 15
"""Of what is right, and as many of what is not."""
TRIES = pytest.mark.parametrize(
    ("label", "mode"),
    [
        (label, mode)
        for label, operation in OPERATIONS.items()
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or operation.body or any(operation.iter_parameters())
    ],
)
"""What is asked for without any input cannot be asked for wrongly."""


@TRIES
def test_every_answer_is_documented(label: str, mode: GenerationMode, trier: Trier) -> None:
    trier.try_out(label, mode, FEW)


@pytest.mark.full
@TRIES
def test_every_answer_is_documented_at_length(label: str, mode: GenerationMode, trier: Trier) -> None:
    """30 examples of each operation, half of them against the schema."""
    trier.try_out(label, mode, MANY)
