"""From an image file to the crops that a model reads."""
