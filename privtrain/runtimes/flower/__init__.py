"""flower: to be said."""
