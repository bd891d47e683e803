from __future__ import annotations

import pytest
from visualization import samples

from batchopt.evidence import ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.plan import Plan


@pytest.fixture(scope="session")
def report() -> ProbeReport:
    return samples.probe_report()


@pytest.fixture(scope="session")
def forecast() -> Forecast:
    return samples.forecast()


@pytest.fixture(scope="session")
def plan() -> Plan:
    return samples.plan_of()
