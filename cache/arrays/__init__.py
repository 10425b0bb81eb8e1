"""The arrays of a store: their form, and where they lie in its file."""
