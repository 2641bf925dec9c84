"""What releases promise: events, and their epsilon by two accountants."""
