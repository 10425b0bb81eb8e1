"""Search for the widths of a composition: NOAH's supernet and evolution, and random search."""
