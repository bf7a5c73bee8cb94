"""schemathesis on the whole OpenAPI: whatever is sent, no error of ours, and no status that is not documented."""

from __future__ import annotations

import warnings
from typing import Any

import hypothesis
import pytest
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


def tried(label: str, stage: ApiStage, headers: dict[str, str], mode: GenerationMode, examples: int) -> None:
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def try_it(case: Any) -> None:
        case.call_and_validate(base_url=stage.api.url, headers=headers, verify=str(stage.api.ca), timeout=30)

    try_it()


def credential(stage: ApiStage) -> dict[str, str]:
    return {"Authorization": f"Bearer {stage.token(STRANGER)}"}


FEW, MANY = 2, 15
TRIES = [
    (label, mode)
    for label, operation in OPERATIONS.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or operation.body or any(operation.iter_parameters())
]
"""What is asked for without any input cannot be asked for wrongly."""


@pytest.mark.parametrize(("label", "mode"), TRIES)
def test_with_a_credential(label: str, mode: GenerationMode, stage: ApiStage) -> None:
    tried(label, stage, credential(stage), mode, FEW)


@pytest.mark.parametrize("label", OPERATIONS)
def test_without_a_credential(label: str, stage: ApiStage) -> None:
    tried(label, stage, {}, GenerationMode.POSITIVE, 1)


@pytest.mark.full
@pytest.mark.parametrize(("label", "mode"), TRIES)
def test_at_length(label: str, mode: GenerationMode, stage: ApiStage) -> None:
    """30 examples of each operation, half of them against the schema."""
    tried(label, stage, credential(stage), mode, MANY)
