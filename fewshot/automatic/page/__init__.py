"""The page that `fewshot auto` writes."""
