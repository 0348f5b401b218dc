"""Weights of modules under test."""

import torch


@torch.no_grad()
def stir(module, strength=0.3):
    """Move a module's parameters away from where they begin, at which some are silent or all but alike; gives it."""
    for parameter in module.parameters():
        parameter.add_(strength * torch.randn_like(parameter))
    return module
