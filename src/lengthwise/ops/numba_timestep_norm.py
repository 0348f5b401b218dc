"""The timestep norm's kernels. The input is read once each way; means and variances are kept for the backward.

A unit of work is one row of the batch and some of the groups. The gradients of mean and variance are a scan in reverse:
with g = dy ⊙ gain, Σ over the s channels of a group, r = 1/√(σ² + eps) and b = 1/n,

    M_t = −r_t Σ g_t + (1 − b_{t+1}) M_{t+1} − e_{t+1}       V_t = −½ r_t³ Σ g_t (x_t − μ_t) + (1 − b_{t+1}) V_{t+1}
    e_t = 2 b_t (1 − b_t) (m_t − μ_{t−1}) V_t                dx_t = r_t g_t + (b_t M_t + e_t + 2 b_t (x_t − m_t) V_t)/s
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import math

import numpy as np

from lengthwise.ops.numba_math import fused, kernel

WIDTH = 256
"""Channels of a unit of work, about: long enough for reading memory at full speed."""


@kernel(sums=True)
def _mean(x):
    fused()
    total = x.dtype.type(0)
    for i in range(x.shape[0]):
        total += x[i]
    return total / x.dtype.type(x.shape[0])


@kernel(sums=True)
def _variance(x, mean):
    fused()
    total = x.dtype.type(0)
    for i in range(x.shape[0]):
        total += (x[i] - mean) * (x[i] - mean)
    return total / x.dtype.type(x.shape[0])


@kernel
def _merge(mean, variance, of_mean, of_variance, share, eps, scale):
    """Running mean and variance with one more step, which counts as `share` of all; scale: 1/√(variance + eps)."""
    fused()
    one = mean.dtype.type(1)
    for g in range(mean.shape[0]):
        apart = of_mean[g] - mean[g]
        variance[g] = (one - share) * variance[g] + share * (of_variance[g] + (one - share) * apart * apart)
        mean[g] += share * apart
        scale[g] = one / math.sqrt(variance[g] + eps)


@kernel
def _normalise(x, gain, bias, mean, scale, y):
    fused()
    for i in range(x.shape[0]):
        y[i] = (x[i] - mean) * scale * gain[i] + bias[i]


@kernel
def _fill(values, value):
    fused()
    for i in range(values.shape[0]):
        values[i] = value


@kernel
def _copy(source, target):
    fused()
    for i in range(source.shape[0]):
        target[i] = source[i]


@kernel(entry=True)
def forward(x, gain, bias, counts, starts, padding, eps, mean, variance, y, means, variances, width, first, last):
    """Units `first` to `last` of batch times blocks of `width` groups. Writes y, means and variances.

    x, y: [batch, length, groups, size]. gain, bias: [groups, size]. counts: [batch, length], of each token the steps up
    to it. starts, padding: [batch, length] or empty. mean, variance: [batch, groups], at first the initial ones, become
    the last. means, variances: [batch, length, groups].
    """
    fused()
    length, groups = x.shape[1], x.shape[2]
    blocks = (groups + width - 1) // width
    zero, one = x.dtype.type(0), x.dtype.type(1)
    tolerance = x.dtype.type(eps)
    of_mean, of_variance, scale = np.empty(width, x.dtype), np.empty(width, x.dtype), np.empty(width, x.dtype)
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * width
        end = min(groups, begin + width)
        now, spread = mean[row, begin:end], variance[row, begin:end]
        for t in range(length):
            if padding.size > 0 and padding[row, t]:
                for g in range(begin, end):
                    _fill(y[row, t, g], zero)
            else:
                if starts.size > 0 and starts[row, t]:
                    _fill(now, zero)
                    _fill(spread, one)
                for g in range(begin, end):
                    middle = _mean(x[row, t, g])
                    of_mean[g - begin] = middle
                    of_variance[g - begin] = _variance(x[row, t, g], middle)
                _merge(now, spread, of_mean, of_variance, one / x.dtype.type(counts[row, t]), tolerance, scale)
                for g in range(begin, end):
                    _normalise(x[row, t, g], gain[g], bias[g], now[g - begin], scale[g - begin], y[row, t, g])
            _copy(now, means[row, t, begin:end])
            _copy(spread, variances[row, t, begin:end])


@kernel(sums=True)
def _slopes(x, dy, gain, mean):
    """Σ g and Σ g (x − μ)."""
    fused()
    total, tilted = x.dtype.type(0), x.dtype.type(0)
    for i in range(x.shape[0]):
        g = dy[i] * gain[i]
        total += g
        tilted += g * (x[i] - mean)
    return total, tilted


@kernel
def _spread(x, dy, gain, mean, scale, of_mean, to_all, to_each, dx, d_gain, d_bias):
    fused()
    for i in range(x.shape[0]):
        dx[i] = dy[i] * gain[i] * scale + to_all + to_each * (x[i] - of_mean)
        d_gain[i] += dy[i] * (x[i] - mean) * scale
        d_bias[i] += dy[i]


@kernel(entry=True)
def backward(
    dy, x, gain, counts, starts, padding, eps, initial, means, variances,
    d_mean, d_variance, dx, d_gain, d_bias, width, first, last,
):  # fmt: skip
    """Gradients of `forward`.

    d_mean, d_variance: those of the last mean and variance, become those of the initial ones. d_gain, d_bias: [batch,
    groups, size], zero at first.
    """
    fused()
    length, groups = x.shape[1], x.shape[2]
    blocks = (groups + width - 1) // width
    zero, one, two = x.dtype.type(0), x.dtype.type(1), x.dtype.type(2)
    half, tolerance, each = x.dtype.type(0.5), x.dtype.type(eps), one / x.dtype.type(x.shape[3])
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * width
        end = min(groups, begin + width)
        for t in range(length - 1, -1, -1):
            if padding.size > 0 and padding[row, t]:
                for g in range(begin, end):
                    _fill(dx[row, t, g], zero)
                continue
            begins = starts.size > 0 and starts[row, t]
            share = one / x.dtype.type(counts[row, t])
            for g in range(begin, end):
                mean, scale = means[row, t, g], one / math.sqrt(variances[row, t, g] + tolerance)
                total, tilted = _slopes(x[row, t, g], dy[row, t, g], gain[g], mean)
                of_mean = _mean(x[row, t, g])
                before = zero if begins else (means[row, t - 1, g] if t > 0 else initial[row, g])
                to_mean = d_mean[row, g] - scale * total
                to_variance = d_variance[row, g] - half * scale * scale * scale * tilted
                apart = two * share * (one - share) * (of_mean - before) * to_variance
                to_all, to_each = each * (share * to_mean + apart), each * two * share * to_variance
                _spread(
                    x[row, t, g], dy[row, t, g], gain[g], mean, scale, of_mean, to_all, to_each,
                    dx[row, t, g], d_gain[row, g], d_bias[row, g],
                )  # fmt: skip
                d_mean[row, g] = zero if begins else (one - share) * to_mean - apart
                d_variance[row, g] = zero if begins else (one - share) * to_variance
