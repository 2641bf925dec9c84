"""crypten: to be said."""
