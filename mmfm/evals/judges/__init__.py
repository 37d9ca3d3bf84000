"""Judges: readers of pictures and sounds that no model here has seen."""
