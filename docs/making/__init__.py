"""What makes the pages of the site, beside their text."""
