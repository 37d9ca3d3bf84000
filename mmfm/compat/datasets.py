"""datasets: the fingerprint of what a table was made of, by which its cache knows it."""

from typing import Any


def fingerprint(table: Any) -> str:
    return str(table._fingerprint)
