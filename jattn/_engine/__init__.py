"""What the rest is built on; nothing here is public."""
