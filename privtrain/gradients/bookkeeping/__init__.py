"""bookkeeping: to be said."""
