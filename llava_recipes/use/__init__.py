"""Use trained models: open them, ask them, evaluate them."""
