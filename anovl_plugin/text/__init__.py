"""The text encoder: prompts, CLIP's text tower and the text bank."""
