"""Other programs that read what is exported, asked the same questions: see ../README.md."""
