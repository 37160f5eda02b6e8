"""The base that a service serves: what names it, where its files come from, whether it can be served, and its change."""
