"""Objectives as users write them, and objectives that break the contract of `bnnzoo.testing`, each in one way."""

import numpy as np

from bnnzoo.objectives import ELBO, BBAlpha, Objective


class WorstCase(Objective):
    """The README's: each datum under the particle that is worst for it."""

    def combine(self, data, divergence):
        return divergence.mean() - sum((count * log_likelihood.amin(0)).sum() for log_likelihood, count in data)


class Multiple(WorstCase):
    """A constructor of its own, and K = 1 is not the ELBO."""

    def __init__(self, factor, particles, weight):
        super().__init__(particles, weight)
        self.factor, self.particles, self.weight = factor, particles, weight

    def combine(self, data, divergence):
        return self.factor * super().combine(data, divergence)


class Changed(ELBO):
    """An ELBO whose loss is changed."""

    def change(self, loss):
        return loss

    def combine(self, data, divergence):
        return self.change(super().combine(data, divergence))


class Plain:
    """No `pyro.infer.ELBO`."""

    def __init__(self, num_particles, kl_weight):
        self.differentiable_loss = ELBO(num_particles, kl_weight).differentiable_loss


class Vector(Changed):
    def change(self, loss):
        return loss[None]


class Number(Changed):
    def change(self, loss):
        return loss.item()


class Constant(Changed):
    def change(self, loss):
        return loss.detach()


class NoGradients(ELBO):
    def loss_and_grads(self, *args, **kwargs):
        return self.loss(*args, **kwargs)


class ToldByDatum(ELBO):
    """What `SVI` is told is not what is minimized."""

    def loss_and_grads(self, *args, size, **kwargs):
        return super().loss_and_grads(*args, size=size, **kwargs) / size


class Overflows(ELBO):
    """The logarithm of a probability of all data."""

    def combine(self, data, divergence):
        likelihood = sum((count * log_p).flatten(1).sum(1) for log_p, count in data).exp()
        return divergence.mean() - likelihood.mean().log()


class DataDetached(ELBO):
    def combine(self, data, divergence):
        return super().combine([(log_p.detach(), count) for log_p, count in data], divergence)


class CountsDropped(ELBO):
    """N/B is left out."""

    def combine(self, data, divergence):
        return super().combine([(log_p, 1.0) for log_p, _ in data], divergence)


class MeanOverData(ELBO):
    def combine(self, data, divergence):
        return super().combine(data, divergence) / sum(count * log_p[0].numel() for log_p, count in data)


class WrongSign(ELBO):
    def combine(self, data, divergence):
        return super().combine(data, -divergence)


class SumOverParticles(ELBO):
    def combine(self, data, divergence):
        return len(divergence) * super().combine(data, divergence)


class RefusesPoints(ELBO):
    def _check(self, guide):
        if type(guide).__name__ == "Map":
            raise ValueError("no points here")


class RefusesSilently(ELBO):
    def _check(self, guide):
        if type(guide).__name__ == "Map":
            raise ValueError


class WeightIgnored(ELBO):
    def __init__(self, num_particles, kl_weight):
        super().__init__(num_particles)


class WeightAtTheStart(ELBO):
    def __init__(self, num_particles, kl_weight):
        super().__init__(num_particles, kl_weight(0.0) if callable(kl_weight) else kl_weight)


class EqualShares(BBAlpha):
    """Gradients of the particles' mean, and the value of a power mean."""

    def combine(self, data, divergence):
        slope = ELBO.combine(self, data, divergence)
        return super().combine(data, divergence).detach() + slope - slope.detach()


class Branches(Changed):
    def change(self, loss):
        return loss if loss.item() < 1e9 else loss / 2


class Single(Changed):
    def change(self, loss):
        return loss.float()


class NoiseOfNumpy(Changed):
    def change(self, loss):
        return loss + 0.1 * np.random.default_rng().normal()


class Remembers(Changed):
    """A sum that goes on."""

    calls = 0

    def change(self, loss):
        self.calls += 1
        return loss + self.calls


class Nameless(ELBO):
    __repr__ = object.__repr__


class Forgets(ELBO):
    """An argument that is no attribute."""

    def __init__(self, num_particles, kl_weight, strength=1.0):
        super().__init__(num_particles, kl_weight)


class Ascends(Changed):
    def change(self, loss):
        return 2 * loss.detach() - loss
