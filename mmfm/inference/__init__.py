"""A trained model as people use it: encode, generate, load."""
