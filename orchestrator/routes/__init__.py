"""HTTP in, one call, HTTP out. No decisions."""
