"""Encoders of other libraries behind one face: tokens in the width that they have, `keep` True where real."""
