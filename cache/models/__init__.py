"""Frozen models, by name or from files."""
