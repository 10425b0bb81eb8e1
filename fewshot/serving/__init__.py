"""Answers over HTTP: a server with limits on everything, and predictions through it."""
