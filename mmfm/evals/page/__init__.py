"""The parts of report.html. Standard library only."""
