"""Environment families with planted causes (docs/families.md); never how an agent is trained in them."""
