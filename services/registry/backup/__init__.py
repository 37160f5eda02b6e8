"""Backup, restore and check of a registry: `python -m services.registry.backup`. See docs/backup.md."""
