"""Learned parameters in a file: saved, loaded, used on new images, taken elsewhere."""
