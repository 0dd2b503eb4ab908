"""Compile a Recipe into a Plan. Nothing heavy is imported here."""
