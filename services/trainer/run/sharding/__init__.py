"""How the processes of one job share its model: a strategy per file, and which one a spec asks for."""
