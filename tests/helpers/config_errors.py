"""Error messages of ``from_config``."""

import pytest

from anovl_plugin.config import from_config
from anovl_plugin.scoring.adaptation import Adaptation

CHOICES = "LinearAdapter, TextAdapter, or the class path of your own subclass of Adaptation"


def error_of(expected, value, base=Adaptation, **options):
    """Return the message of the expected error, and check that it is one line."""
    with pytest.raises(expected) as caught:
        from_config(value, base, **options)
    assert type(caught.value) is expected
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message
