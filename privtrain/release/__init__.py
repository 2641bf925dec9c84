"""release: to be said."""
