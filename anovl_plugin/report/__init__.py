"""Tables and plots of the results of ``anomalib benchmark``: ``python -m anovl_plugin.report RESULTS.csv``."""
