"""gradients: to be said."""
