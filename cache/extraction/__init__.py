"""Encode what is new, shard by shard, keep it in the bank, and write a store."""
