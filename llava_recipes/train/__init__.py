"""One stage plan becomes one Hugging Face Trainer run."""
