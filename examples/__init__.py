"""The demo's base model and data, each made again by one command; nothing here is imported by a service."""
