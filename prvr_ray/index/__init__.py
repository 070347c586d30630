"""ROOT/index: encoded windows of every video, which of them are live, and the student that encodes them."""
