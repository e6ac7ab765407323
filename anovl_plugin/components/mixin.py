"""Base of the mixins that make up the anomalib model."""

from typing import TYPE_CHECKING

__all__ = ["ModelMixin"]

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule as ModelMixin
else:

    class ModelMixin:
        """Base of mixins that stand before ``AnomalibModule``; type checkers take it for that class.

        At run time it is another, as anomalib lists every direct subclass of ``AnomalibModule`` as a model.
        """
