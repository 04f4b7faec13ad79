"""Fast forms of operations, each exactly equal to a plain form."""
