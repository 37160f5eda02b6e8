"""Weights in the old form, adapter_model.bin: converted in a process of its own, never in the caller's."""
