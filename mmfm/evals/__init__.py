"""How good a model is: classes, retrieval and writing, each with its interval and its chance level; and the report."""
