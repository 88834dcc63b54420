"""Power means of probabilities under Gaussian outputs, by other ways than the library's."""

import math

import numpy as np
from scipy import integrate, special, stats


def by_quadrature(log_prob, mean: float, std: float, alpha: float) -> float:
    """`(1/alpha) log E exp(alpha log_prob(x))`, x ~ N(mean, std²), by adaptive quadrature around the peak."""

    def height(x):
        return alpha * log_prob(x) - 0.5 * ((x - mean) / std) ** 2

    offsets = std * np.geomspace(1e-4, 1e3, 3000)
    x = np.concatenate([mean - offsets[::-1], [mean], mean + offsets])
    with np.errstate(over="ignore", invalid="ignore"):
        inside = x[np.nan_to_num(height(x), nan=-np.inf) > np.nanmax(height(x)) - 45]
        x = np.linspace(inside[0] - 0.1 * std, inside[-1] + 0.1 * std, 3000)
        if abs(alpha) < 0.01:  # E exp(alpha f) is nearly 1
            center = log_prob(np.float64(mean))

            def small(x):
                return np.expm1(alpha * (log_prob(x) - center)) / alpha * stats.norm.pdf(x, mean, std)

            excess = integrate.quad(small, x[0], x[-1], points=np.linspace(x[0], x[-1], 12)[1:-1], limit=400)[0]
            return center + np.log1p(alpha * excess) / alpha
        heights = np.nan_to_num(height(x), nan=-np.inf)
    top = heights.max()
    inside = x[heights > top - 45]
    lower, upper = inside[0] - (x[1] - x[0]), inside[-1] + (x[1] - x[0])
    points = np.unique([x[heights.argmax()], *np.linspace(lower, upper, 12)[1:-1]])
    mass = integrate.quad(lambda x: np.exp(height(x) - top), lower, upper, points=points, limit=400)[0]
    return (top + math.log(mass / (std * math.sqrt(2 * math.pi)))) / alpha


def softmax_power_mean(mean, variance, y: int, alpha: float) -> float:
    """The exact one for K classes, by quadrature in one dimension of quadratures in one dimension.

    With G independent of the logits and standard Gumbel, -T = log Σ exp f_k + G has P(T > t) = Π_k E exp(-exp(t + f_k))
    as the f_k are independent, and E exp(αT) = Γ(1 + α) E (Σ exp f_k)^-α, here of logits tilted by exp(α f_y).
    """
    mean, std = np.array(mean, dtype=float), np.sqrt(variance)
    outside = mean[y] + 0.5 * alpha * variance[y]
    mean[y] += alpha * variance[y]
    t = np.linspace(-mean.max() - 8 * std.max() - 45, 12 - mean.max() + 8 * std.max(), 1200)
    nodes = np.linspace(-8, 8, 129)
    weights = np.exp(-0.5 * nodes**2) / np.exp(-0.5 * nodes**2).sum()
    rates = np.exp(np.minimum(t[:, None, None] + mean[:, None] + std[:, None] * nodes, 700))  # [t, class, node]
    survival, density = np.exp(-rates) @ weights, (rates * np.exp(-rates)) @ weights
    others = [np.prod(np.delete(survival, k, 1), 1) for k in range(len(mean))]
    density = sum(density[:, k] * others[k] for k in range(len(mean)))
    density /= density.sum()
    if alpha == 0:
        return outside + density @ t + np.euler_gamma
    top = alpha * t[np.argmax(density * np.exp(alpha * (t - t[-1])))]
    return outside + (top + math.log(density @ np.exp(alpha * t - top)) - special.gammaln(1 + alpha)) / alpha
