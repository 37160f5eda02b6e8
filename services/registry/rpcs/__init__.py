"""The RPCs of RegistryService in groups; servicer.py puts them together."""
