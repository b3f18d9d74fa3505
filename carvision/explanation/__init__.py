"""Show which parts of a photo a prediction rests on."""
