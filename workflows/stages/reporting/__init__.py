"""What a report says of a set, of its clusters and failures, and of their pictures; never how a page looks."""
