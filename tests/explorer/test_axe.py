"""axe-core finds no violation in the live explorer of tokens and of vectors."""

import pytest

from explorer.test_browser import script, serving
from explorer.test_vector_page import subject as vector_subject  # noqa: F401  a fixture
from report.test_axe import SCREENS, axe_script

pytestmark = [pytest.mark.slow, pytest.mark.needs_chromium]
STATES = {
    "subject": "#prompt=a+list+of+names&position=2&off=1.2&source=a+list+of+Names",
    "vector_subject": "#prompt=3%3B+4%3D1.5&position=4&off=1.2&source=7&baseline=least+squares",
}


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("kind", STATES)
def test_the_explorer_has_no_violations(request, browser, kind, screen):
    with serving(request.getfixturevalue(kind)) as address:
        found, _ = browser.visit(address + STATES[kind], script(axe_script()), **SCREENS[screen])
    assert found["width"] == SCREENS[screen]["width"]
    assert found["violations"] == []
    assert found["passes"] > 30
