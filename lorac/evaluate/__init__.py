"""Figures about a LoRA, from what a tagger sees in many of its pictures and from the pixels of small ones."""
