"""Commands that have more to say than a line, each light to import."""
