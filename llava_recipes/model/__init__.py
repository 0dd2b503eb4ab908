"""Assemble language model, vision tower and projector."""
