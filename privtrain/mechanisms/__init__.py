"""mechanisms: to be said."""
