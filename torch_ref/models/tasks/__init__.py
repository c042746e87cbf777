"""Models for one task each."""
