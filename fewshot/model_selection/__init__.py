"""Choosing among settings and methods, and saying how good the choice is."""
