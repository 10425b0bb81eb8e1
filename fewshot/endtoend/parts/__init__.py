"""Parts that several end-to-end methods share."""
