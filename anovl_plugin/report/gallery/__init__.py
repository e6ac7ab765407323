"""The results of a run as one HTML page: ``python -m anovl_plugin.report gallery RESULTS``."""

from anovl_plugin.report.gallery.page import Written, write_gallery

__all__ = ["Written", "write_gallery"]
