"""Native encoders, written from layers.py: what goes in becomes tokens that are kept or padding."""
