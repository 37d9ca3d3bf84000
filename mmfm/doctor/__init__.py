"""What is wrong with a run's data, before it is trained: one pass over its shards, and a few of its steps."""
