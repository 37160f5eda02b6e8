"""Kubernetes objects as plain values: made here, applied elsewhere. Nothing here talks to a cluster."""
