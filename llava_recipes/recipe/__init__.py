"""Text to Recipe: read, resolve, validate. Nothing heavy is imported here."""
