"""From labeled photos to the method that suits them, how good it is, and what to do next."""
