"""accounting: to be said."""
