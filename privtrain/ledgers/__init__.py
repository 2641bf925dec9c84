"""ledgers: to be said."""
