"""A pytest plugin for dask-jobqueue's own PBS test file: what its repository's conftest gives it."""

from __future__ import annotations

import dask_jobqueue  # noqa: F401 - before distributed remembers the configuration that it gives back to each test
import pytest
from distributed.utils_test import cleanup, loop, loop_in_thread  # noqa: F401 - fixtures that its tests ask for


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "env(name): needs that batch system; here it is ours")
