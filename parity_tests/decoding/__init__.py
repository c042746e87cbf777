"""Parity of decoding."""
