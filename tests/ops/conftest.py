import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Without the run-time check of annotations, which torch.compile can't trace."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
