"""The face that transformers sees: configuration, model, processor."""
