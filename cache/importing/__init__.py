"""Features from elsewhere become a store."""
