"""one_run: to be said."""
