"""What several cached methods share."""
