"""Torch-free tests. A package, so that the tests can share `oracle` and `strategies`."""
