"""Use what was trained: talk with it, ask it many questions at once, measure its answers."""
