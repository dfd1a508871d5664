"""HTTP in, HTTP out. No torch, no SQL text."""
