"""What a plan costs: memory, hours and disk; no torch."""
