"""Pictures to what the vision encoders read: decoding, tiles and pixels. Knows no model and no request."""
