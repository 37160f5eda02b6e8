"""Rollouts at the endpoint: which part of an alias answers, how canaries fare, and what follows from that."""
