"""One module per way in which a dataset lies on disk; each turns what it finds into a listing."""
