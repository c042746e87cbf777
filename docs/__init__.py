"""The site's pages, and what makes them."""
