"""What the user brings: videos, captions with their moments, released features; and the rendered demo world."""
