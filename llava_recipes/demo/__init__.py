"""A small world of drawn shapes: pictures, captions, the words for them, and a score."""
