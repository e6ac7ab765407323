"""Tables and plots of ``anomalib benchmark``, and a gallery of a run: ``python -m anovl_plugin.report``."""
