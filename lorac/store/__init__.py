"""Content-addressed storage and the record of what was built from what."""
