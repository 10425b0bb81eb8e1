"""What several end-to-end methods share."""
