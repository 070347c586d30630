"""Video files: reading packets, choosing frames, and decoding them in a child process."""
