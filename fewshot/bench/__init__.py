"""The benchmark: every cell of a plan, run once, whatever happens in between."""
