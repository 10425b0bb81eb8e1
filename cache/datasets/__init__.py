"""Datasets: declared, listed, resolved to what lies on disk, and checked."""
