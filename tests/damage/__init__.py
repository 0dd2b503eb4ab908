"""Every file that the program reads, damaged in every way, and the commands that read it."""
