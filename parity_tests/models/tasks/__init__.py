"""Parity of the models for one task each."""
