"""The parts of pages; those of report.html need the standard library alone."""
