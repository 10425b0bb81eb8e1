"""Stage 1: images and prompts become feature stores.

Importing `cache.store` runs this file, and stage 2 does so: nothing here may pull in an encoder.
"""
