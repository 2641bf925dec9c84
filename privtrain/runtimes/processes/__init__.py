"""processes: to be said."""
