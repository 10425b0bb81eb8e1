"""Parts that several cached methods share."""
