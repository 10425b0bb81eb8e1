"""A page on which photos are labeled while the classifier learns."""
