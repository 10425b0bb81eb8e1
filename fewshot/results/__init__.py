"""Results: one JSON line each, and the tables, tests and plots made of them."""
