"""A source of another library as a folder of ours, and the measured difference between the two."""
