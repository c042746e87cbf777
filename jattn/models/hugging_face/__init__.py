"""Models that Hugging Face has too, one file a family: class, settings and names together."""
