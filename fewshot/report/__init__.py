"""A report on results: tables, drawings, and one page that holds all of them."""
