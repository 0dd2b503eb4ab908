"""Trained models put to use: opened, asked, evaluated."""
