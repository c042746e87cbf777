"""Who computes an attention: one file an implementation, and which is chosen."""
