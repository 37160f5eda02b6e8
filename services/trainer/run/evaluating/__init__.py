"""Measures models on held-out rows: losses, answers, what is forgotten, and what follows from it for the training."""
