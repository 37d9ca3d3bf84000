"""Encoders in a folder: safetensors, strict JSON, and fixed inputs whose outputs are checked when it is opened."""
