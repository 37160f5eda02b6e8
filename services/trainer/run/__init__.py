"""The worker: trains one job in its own process. The only part of the trainer that imports torch."""
