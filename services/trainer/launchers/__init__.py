"""How a worker is started, found again and ended."""
