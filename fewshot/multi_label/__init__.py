"""Images of several labels: the few shots, tuning, labels and results."""
