"""Records, images, tokens, labels and batches."""
