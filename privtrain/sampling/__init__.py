"""sampling: to be said."""
