"""Shards to batches: shards.py finds the samples, order.py decides which comes when, stream.py reads and collates."""
