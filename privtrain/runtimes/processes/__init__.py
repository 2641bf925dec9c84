"""A mesh of operating-system processes on one machine, one for each party."""
