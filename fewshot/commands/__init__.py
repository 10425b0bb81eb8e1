"""The commands of `fewshot`, one function each; cli.py registers them."""
