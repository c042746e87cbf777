"""Parity of the models that Hugging Face has too."""
