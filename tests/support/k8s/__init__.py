"""Renders deploy/k8s and reads what came out."""
