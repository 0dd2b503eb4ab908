"""Open finished runs and checkpoints as one whole model, and write them in the layouts that others read."""
