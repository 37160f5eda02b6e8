"""What only the end-to-end tests need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models import REPOSITORY

SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets that lie beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets do not lie beside this checkout (../shared/data)")
    return SHARED_DATA
