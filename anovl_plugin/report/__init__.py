"""Tables and plots of what ``anomalib benchmark`` measured: ``python -m anovl_plugin.report RESULTS.csv``."""
