"""A small world of drawn shapes: images, captions, the words for them, and a score."""
