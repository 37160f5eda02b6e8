"""The whole path in one command, see __main__.py."""
