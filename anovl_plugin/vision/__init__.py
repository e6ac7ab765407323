"""The image encoder: CLIP's image tower, value-wise attention, views and tiles."""
