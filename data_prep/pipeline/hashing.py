"""Pseudo-random choices that depend on a text alone, so that they never change between runs."""

import hashlib


def fraction_of(text: str) -> float:
    """A number in [0, 1) that depends only on the text, by its SHA-256 hash."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
