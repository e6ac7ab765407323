"""The reference images of a run."""
