"""Train one stage of a plan with the Hugging Face Trainer."""
