"""Benchmarks on one CUDA device, with random weights of published architectures and without a network."""
