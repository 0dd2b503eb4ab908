"""Other programs' training commands and configs, read as text and turned into recipes; and the way back."""
