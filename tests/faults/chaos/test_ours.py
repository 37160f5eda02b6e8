"""Every way in which stock vLLM goes wrong with adapters, asked of our service on the real engine."""

from __future__ import annotations

import pytest

from tests.faults.chaos.cases import Case
from tests.faults.chaos.ours import CASES
from tests.faults.chaos.service import Chaos
from tests.faults.chaos.table import Table

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.engine]


@pytest.mark.parametrize("case", CASES, ids=[case.name.lower() for case in CASES])
async def test_no_innocent_answer_is_harmed(case: Case, chaos: Chaos, table: Table) -> None:
    with table.ours(case) as row:
        row.told = await CASES[case](chaos)
    assert chaos.engine.healthy
