"""Generators: features of classes that have a name and no image, for any method to learn from."""
