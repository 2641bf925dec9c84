"""Secret-shared computation behind one protocol."""
