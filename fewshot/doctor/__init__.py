"""Check that this installation and this machine can do what the commands ask of them."""
