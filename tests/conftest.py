"""What every test starts from."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def clean_slate():
    """Seeded generators, an empty store of global Pyro parameters, Pyro's validation on."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()
