"""Classify images with an exported adapter: onnxruntime, numpy and Pillow, nothing else."""
