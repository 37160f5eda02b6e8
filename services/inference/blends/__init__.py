"""Blends: a request names several adapters with weights, and is answered by a version that is derived of them."""
