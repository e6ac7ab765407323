"""Try images, words and references in the browser: ``python -m anovl_plugin.playground``."""
