"""ROOT/features: which videos and captions are pending, and the workers that decode, encode and import them."""
