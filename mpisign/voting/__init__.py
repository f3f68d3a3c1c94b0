"""P ranks agree on the majority of their signs."""
