"""What labeled photos say about themselves: which method suits them, how well, and what next."""
