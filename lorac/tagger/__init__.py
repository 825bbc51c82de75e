"""A WD14 tagger: SmilingWolf's two files, the preprocessing they were trained for, and tags from probabilities."""
