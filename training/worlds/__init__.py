"""Environment families with planted causes: small worlds, stepped as arrays (docs/families.md)."""
