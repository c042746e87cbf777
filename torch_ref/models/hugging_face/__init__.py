"""Models that Hugging Face has too."""
