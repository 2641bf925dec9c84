"""command: to be said."""
