"""Calls that must fail."""

from __future__ import annotations

from typing import Any

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError


async def refusal(call: Any) -> GraftError:
    """The error that a call raises, as a client sees it."""
    with pytest.raises(GraftError) as caught, rpc_errors("the service"):
        await call
    return caught.value
