"""What one model answers, as plain values without HTTP."""
