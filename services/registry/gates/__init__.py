"""Gates: what must hold before an alias moves, decided without a database."""
