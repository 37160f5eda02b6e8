"""Objectives: what the trained parameters are optimized for."""
