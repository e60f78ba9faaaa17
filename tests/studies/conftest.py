"""What several tests of studies start from."""

import pytest

from studies.small_study import SMALL_STUDY


@pytest.fixture
def small(tmp_path):
    """A file with a study of one layer that trains for two steps."""
    file = tmp_path / "small.py"
    file.write_text(SMALL_STUDY)
    return file
