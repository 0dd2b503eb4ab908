"""Trained models in layouts that other programs read."""
