"""The bundled tiny CLIP: what it is shown, what it is told about it, and how it is trained."""
