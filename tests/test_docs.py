"""What the documentation shows of the code is the code."""

import inspect

from conftest import REPO

from nlt.methods.coteaching import CoTeaching


def test_the_worked_example_is_the_methods_own_text():
    page = (REPO / "docs" / "adding-a-method.md").read_text()
    body = inspect.getsource(CoTeaching.train).split('"""Train both networks."""\n')[1]
    assert body in page
