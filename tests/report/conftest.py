from __future__ import annotations

import pytest

from graphopt_gym.simulator import Timeline
from tests.report.cases import make_timeline


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return make_timeline(300, 2)
