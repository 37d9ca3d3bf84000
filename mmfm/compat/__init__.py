"""What is used of other libraries beyond what they promise to keep: one file for each library, each name there once.

A name that moves is mended in its file alone, and `tests/test_compat.py` says for each what it is for and what to do.
Nothing is imported before it is asked for: none of these libraries is needed by the core.
"""
