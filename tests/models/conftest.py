import pytest

import scale_interp as si


@pytest.fixture(scope="session")
def train():
    return si.load_questions("scenes/relation", "train", n=500)


@pytest.fixture(scope="session")
def test():
    return si.load_questions("scenes/relation", "test", n=400)
