"""Lightning at work: the module, its callbacks, the optimizer, fit and resume, and what is checked before a run."""
