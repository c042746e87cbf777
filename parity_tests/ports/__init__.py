"""Ports of whole models, as a user of jattn would write them, and mistakes that are planted in them."""
