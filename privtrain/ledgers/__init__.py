"""What was spent: the ledger of a run, and that of all runs on the same rows."""
