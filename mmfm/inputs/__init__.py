"""Bytes to tensors: each file here owns one decoder, bounds what it reads and refuses what it cannot read whole."""

from mmfm.config import UserError


class BadInput(UserError):
    """Bytes that cannot be read: cut, damaged, of another format, or larger than is allowed."""
