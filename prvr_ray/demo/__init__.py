"""The demo's world: rendered videos of moving shapes with captions, and a tiny teacher trained on stills of them."""
