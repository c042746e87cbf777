"""Parity of the models."""
