"""Models for one task each: classification, recall, regression, translation."""
