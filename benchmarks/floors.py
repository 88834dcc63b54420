"""Hand-written competitors without Pyro: what a step or a prediction costs when nothing is general.

They handle `nn.Sequential` networks of linear and convolutional layers under a standard normal prior.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from common import DATA_SIZE, LR, NOISE
from torch import Tensor, nn

Step = Callable[[], object]


def negative_log_likelihood(output: Tensor, y: Tensor, size: int = DATA_SIZE) -> Tensor:
    """Of outputs [..., N, K], scaled to `size` rows: categorical, or Gaussian with known noise, up to a constant."""
    if y.is_floating_point():
        squares = (output.squeeze(-1) - y).square().sum()
        return squares * (size / y.shape[-1] / (2 * NOISE**2))
    return F.cross_entropy(output, y, reduction="sum") * (size / y.shape[-1])


def plain_step(network: nn.Sequential, x: Tensor, y: Tensor, lr: float = LR) -> Step:
    """The step of the ordinary network with one fused Adam: no uncertainty at all."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = negative_log_likelihood(network(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def sample_layer(layer: nn.Module, h: Tensor, loc: Sequence[Tensor], variance: Sequence[Tensor], local: bool) -> Tensor:
    """Output of a layer with independent Gaussian weight and bias: the local rule or one dense draw for the batch."""
    if not local:
        weight, bias = (torch.addcmul(m, v.sqrt(), torch.randn_like(m)) for m, v in zip(loc, variance, strict=True))
        return apply_layer(layer, h, weight, bias)
    mean = apply_layer(layer, h, *loc)
    return torch.addcmul(mean, apply_layer(layer, h * h, *variance).sqrt(), torch.randn_like(mean))


def apply_layer(layer: nn.Module, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer, or a convolution without padding, with other weights."""
    if isinstance(layer, nn.Linear):
        return F.linear(h, weight, bias)
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(h, weight, bias, layer.stride)


def views(flat: Tensor, shapes: Sequence[torch.Size]) -> Iterator[Tensor]:
    """A flat vector's parts in these shapes, one after the other."""
    parts = flat.split([shape.numel() for shape in shapes])
    return iter([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])


def flat_step(
    network: nn.Sequential, x: Tensor, y: Tensor, local_conv: bool = True, lr: float = LR, init_scale: float = 0.01
) -> Step:
    """The floor: all locs in one vector, all log variances in another, one KL, one fused Adam, views for the layers.

    Args:
        network: Gives the architecture and the first locs.
        x: Inputs of the minibatch.
        y: Its targets [N].
        local_conv: Local reparameterization on convolutions too; otherwise they get one dense draw a batch.
        lr: Adam's.
        init_scale: First posterior standard deviation.

    Returns:
        A function that does one step and returns the loss.
    """
    shapes = [p.shape for p in network.parameters()]
    loc = nn.utils.parameters_to_vector(network.parameters()).detach().requires_grad_()
    log_variance = torch.full_like(loc, 2 * math.log(init_scale)).requires_grad_()
    optimizer = torch.optim.Adam([loc, log_variance], lr=lr, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        variance = log_variance.exp()
        locs, variances = views(loc, shapes), views(variance, shapes)
        h = x
        for layer in network:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                pairs = (next(locs), next(locs)), (next(variances), next(variances))
                h = sample_layer(layer, h, *pairs, local=local_conv or isinstance(layer, nn.Linear))
            else:
                h = layer(h)
        kl = (torch.dot(loc, loc) + (variance - log_variance).sum() - loc.numel()) / 2
        loss = negative_log_likelihood(h, y) + kl
        loss.backward()
        optimizer.step()
        return loss

    return step


def tensor_step(network: nn.Sequential, x: Tensor, y: Tensor, lr: float = LR, init_scale: float = 0.01) -> Step:
    """As `flat_step` with local reparameterization, but one loc, one scale and one KL a tensor: the usual way."""
    locs = [p.detach().clone().requires_grad_() for p in network.parameters()]
    log_variances = [torch.full_like(m, 2 * math.log(init_scale)).requires_grad_() for m in locs]
    optimizer = torch.optim.Adam([*locs, *log_variances], lr=lr, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        kl = x.new_zeros(())
        index, h = 0, x
        for layer in network:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                own = slice(index, index + 2)
                variances = [v.exp() for v in log_variances[own]]
                for m, u, v in zip(locs[own], log_variances[own], variances, strict=True):
                    kl = kl + (m * m + v - u - 1).sum() / 2
                h = sample_layer(layer, h, locs[own], variances, local=True)
                index += 2
            else:
                h = layer(h)
        loss = negative_log_likelihood(h, y) + kl
        loss.backward()
        optimizer.step()
        return loss

    return step


def mnf_step(
    network: nn.Sequential,
    x: Tensor,
    y: Tensor,
    local_conv: bool = False,
    lr: float = LR,
    start: Sequence[Tensor] | None = None,
    length: int = 2,
) -> Step:
    """The floor of multiplicative normalizing flows: masked flows, one z a row on linear layers, one a batch else.

    Args:
        network: Gives the architecture and the first locs.
        x: Inputs of the minibatch.
        y: Its targets [N].
        local_conv: Local reparameterization on convolutions too; otherwise they get one dense draw a batch.
        lr: Adam's.
        start: First values of locs, log variances, locs and log scales of z, r's vectors [5, D] and the flows' weights
            and biases, in the order of `guides.MNF`; by default fresh ones, with the paper's 50 and 100 hidden units.
        length: Steps of each flow.

    Returns:
        A function that does one step and returns the loss.
    """
    shapes = [p.shape for p in network.parameters()]
    layers = [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)]
    dims = [layer.in_features if isinstance(layer, nn.Linear) else layer.out_channels for layer in layers]
    values = _mnf_start(network, dims, length) if start is None else [value.clone() for value in start]
    parameters = [value.requires_grad_() for value in values]
    loc, log_variance, z_loc, z_log_scale, r, *rest = parameters
    each = [rest[i : i + 4] for i in range(0, len(rest), 4)]
    flows = [each[i : i + length] for i in range(0, len(each), length)]
    q_flows, r_flows = flows[: len(dims)], flows[len(dims) :]
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        variance = log_variance.exp()
        locs, variances = views(loc, shapes), views(variance, shapes)
        mixing = iter(
            zip(z_loc.split(dims), z_log_scale.split(dims), r.split(dims, 1), dims, q_flows, r_flows, strict=True)
        )
        h = x
        squares = variance.sum()
        auxiliary = x.new_zeros(())
        for layer in network:
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                h = layer(h)
                continue
            (w, b), (v_w, v_b) = (next(locs), next(locs)), (next(variances), next(variances))
            m, s, own_r, dim, q_flow, r_flow = next(mixing)
            a1, a2, b1, b2, c = own_r.unbind()
            linear = isinstance(layer, nn.Linear)
            noise = torch.randn(x.shape[0], dim) if linear else torch.randn(dim)
            u, log_det = _masked_flow(torch.addcmul(m, s.exp(), noise), q_flow)
            z = u + 1
            if linear:
                mean = F.linear(h * z, w, b)
                h = torch.addcmul(mean, F.linear(h * h, v_w, v_b).sqrt(), torch.randn_like(mean))
                t = F.linear(z * c, w)
                t = torch.addcmul(t, (v_w @ c.square()).sqrt(), torch.randn_like(t))
                squares = squares + z.square().mean(0) @ w.square().sum(0)
            else:
                zw = z.view(-1, 1, 1, 1) * w
                if local_conv:
                    h = sample_layer(layer, h, (zw, b), (v_w, v_b), local=True)
                    t = c @ zw.flatten(1)
                    t = torch.addcmul(t, (c.square() @ v_w.flatten(1)).sqrt(), torch.randn_like(t))
                else:
                    weight, bias = (torch.addcmul(p, v.sqrt(), torch.randn_like(p)) for p, v in ((zw, v_w), (b, v_b)))
                    h = apply_layer(layer, h, weight, bias)
                    t = c @ weight.flatten(1)
                squares = squares + z.square() @ w.flatten(1).square().sum(1)
            squares = squares + b.square().sum()
            t = t.tanh().mean(-1, keepdim=True)
            end, r_log_det = _masked_flow(u, r_flow)
            logit = torch.addcmul(a2, b2, t)
            precision = 1 + (-logit).exp()
            deviation = (end - torch.addcmul(a1, b1, t)) * precision
            log_r = (precision.log() - 0.5 * deviation.square()).sum(-1) + r_log_det
            log_q = -0.5 * noise.square().sum(-1) - s.sum() - log_det  # both without the normal constant
            auxiliary = auxiliary + (log_q - log_r).mean()
        kl = (squares - log_variance.sum() - loc.numel()) / 2
        loss = negative_log_likelihood(h, y) + kl + auxiliary
        loss.backward()
        optimizer.step()
        return loss

    return step


def dropout_step(
    network: nn.Sequential,
    x: Tensor,
    y: Tensor,
    particles: int,
    alpha: float,
    shared: bool = True,
    rate: float = 0.5,
    lr: float = LR,
) -> Step:
    """BB-α with dropout as its paper has it (Li and Gal 2017, Figure 1): every row K times, then a logsumexp.

    Args:
        network: Linear layers and element-wise functions.
        x: Inputs of the minibatch.
        y: Its targets [N].
        particles: K.
        alpha: α, not 0.
        shared: The first layer, whose inputs are not dropped, is computed once; otherwise, as in the paper, K times.
        rate: Of all other layers' inputs.
        lr: Adam's.

    Returns:
        A function that does one step and returns the loss.
    """
    shapes = [p.shape for p in network.parameters()]
    loc = nn.utils.parameters_to_vector(network.parameters()).detach().requires_grad_()
    treated = [len(shape) > 1 and index > 0 for index, shape in enumerate(shapes)]
    # In the mean square a weight with noise on its input is 1 / (1 - rate) times as large.
    each = [torch.full(shape, 1 / (1 - rate) if noisy else 1.0) for shape, noisy in zip(shapes, treated, strict=True)]
    decay = torch.cat([part.flatten() for part in each])
    optimizer = torch.optim.Adam([loc], lr=lr, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        locs = views(loc, shapes)
        h = x if shared else x.repeat(particles, 1)
        first = True
        for layer in network:
            if not isinstance(layer, nn.Linear):
                h = layer(h)
                continue
            if not first:
                h = F.dropout(h if len(h) > len(x) else h.repeat(particles, 1), rate)
            h, first = F.linear(h, next(locs), next(locs)), False
        output = h.view(particles, len(x), -1)
        if y.is_floating_point():
            log_likelihood = (output.squeeze(-1) - y).square() / (-2 * NOISE**2)
        else:
            labels = y.expand(particles, -1).unsqueeze(-1)
            log_likelihood = output.log_softmax(-1).gather(-1, labels).squeeze(-1)
        power_mean = (torch.logsumexp(alpha * log_likelihood, 0) - math.log(particles)) / alpha
        loss = torch.dot(loc * decay, loc) / 2 - power_mean.sum() * (DATA_SIZE / len(x))
        loss.backward()
        optimizer.step()
        return loss

    return step


def _mnf_start(network: nn.Module, dims: list[int], length: int) -> list[Tensor]:
    """Fresh values of an MNF posterior's parameters, in order."""
    loc = nn.utils.parameters_to_vector(network.parameters()).detach()
    total = sum(dims)
    offset = math.log(0.1)
    r = torch.cat(
        [torch.zeros(1, total), torch.full((1, total), offset), 0.1 * torch.randn(2, total), torch.randn(1, total)]
    )
    values = [loc, torch.full_like(loc, -9.0), torch.zeros(total), torch.full((total,), offset), r]
    for hidden in (50, 100):
        for dim in dims:
            for _ in range(length):
                inner, outer = nn.Linear(dim, hidden), nn.Linear(hidden, 2 * dim)
                bias = torch.cat([torch.zeros(dim), torch.full((dim,), 2.0)])
                values += [inner.weight.detach(), inner.bias.detach(), 0.01 * outer.weight.detach(), bias]
    return values


def _masked_flow(u: Tensor, steps: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """The MNF paper's eq. 6, and the logarithms of the Jacobian's determinants."""
    log_det = u.new_zeros(u.shape[:-1])
    words = torch.randint(2**62, (len(steps), *u.shape[:-1], math.ceil(u.shape[-1] / 62), 1))
    masks = ((words >> torch.arange(62)) & 1).flatten(-2)[..., : u.shape[-1]].to(u.dtype)
    for (inner, inner_bias, outer, outer_bias), mask in zip(steps, masks, strict=True):
        h = F.linear(mask * u, inner, inner_bias).tanh()
        shift, logit = F.linear(h, outer, outer_bias).chunk(2, -1)
        gate = torch.addcmul(mask, logit.sigmoid(), 1 - mask)
        u = torch.lerp(shift, u, gate)
        log_det = log_det + gate.log().sum(-1)
    return u, log_det


def chains_step(network: nn.Sequential, x: Tensor, y: Tensor, lr: float = LR, init_scale: float = 0.01) -> Step:
    """As `flat_step` for R posteriors of an MLP at once, by batched matrix products.

    Args:
        network: Linear layers and element-wise functions.
        x: A minibatch for each chain, [R, N, Q].
        y: Its targets, [R, N].
        lr: Adam's.
        init_scale: First posterior standard deviation.

    Returns:
        A function that does one step and returns the sum of the losses.
    """
    chains = x.shape[0]
    sizes = [p.numel() for p in network.parameters()]
    # Weights as [in, out], as the products take them: a transposed view costs a third more.
    loc = torch.cat([p.detach().t().reshape(-1) for p in network.parameters()]).repeat(chains, 1).requires_grad_()
    log_variance = torch.full_like(loc, 2 * math.log(init_scale)).requires_grad_()
    optimizer = torch.optim.Adam([loc, log_variance], lr=lr, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        variance = log_variance.exp()
        locs, variances = iter(loc.split(sizes, 1)), iter(variance.split(sizes, 1))
        h = x
        for layer in network:
            if isinstance(layer, nn.Linear):
                shape = (chains, layer.in_features, layer.out_features)
                mean, spread = (
                    torch.baddbmm(bias.unsqueeze(1), u, weight.view(shape))
                    for u, weight, bias in ((h, next(locs), next(locs)), (h * h, next(variances), next(variances)))
                )
                h = torch.addcmul(mean, spread.sqrt(), torch.randn_like(mean))
            else:
                h = layer(h)
        kl = (loc.square() + variance - log_variance - 1).sum() / 2
        loss = negative_log_likelihood(h, y) + kl
        loss.backward()
        optimizer.step()
        return loss

    return step


def bmm_draws(network: nn.Sequential, scale: float, num_draws: int) -> Callable[[Tensor], Tensor]:
    """Outputs [draw, N, K] of an MLP under a factorized Gaussian posterior around the network's own weights.

    Args:
        network: Linear layers and element-wise functions.
        scale: Standard deviation of every weight.
        num_draws: Posterior draws.

    Returns:
        A function of the inputs [N, Q] that draws weights afresh.
    """
    sizes = [p.numel() for p in network.parameters()]
    loc = nn.utils.parameters_to_vector(network.parameters()).detach()

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        draws = iter(torch.addcmul(loc, torch.full_like(loc, scale), torch.randn(num_draws, len(loc))).split(sizes, 1))
        h = x.expand(num_draws, *x.shape)
        for layer in network:
            if isinstance(layer, nn.Linear):
                weight = next(draws).reshape(num_draws, layer.out_features, layer.in_features)
                h = torch.baddbmm(next(draws).unsqueeze(1), h, weight.transpose(1, 2))
            else:
                h = layer(h)
        return h

    return predict
