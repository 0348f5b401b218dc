"""The moving average's arithmetic: one token, and four at a time, of one block of channels.

With real numbers, or with real and imaginary parts in planes of their own, so that loops over channels are vector
loops. For four tokens at a time an average is fetched and stored once.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

from lengthwise.ops.numba_math import fused, kernel

WIDTH = 16
"""Channels that are run together: one vector of AVX-512, one line of the cache."""

STEP = 4
"""Tokens that are run together."""


@kernel
def _advance(x, y, q, w, p, r, h, g):
    """One token. q, w and h are the real parts, p, r and g the imaginary ones."""
    fused()
    for i in range(WIDTH):
        real = q[i] * h[i] - p[i] * g[i] + x[i]
        imaginary = q[i] * g[i] + p[i] * h[i]
        y[i] += w[i] * real - r[i] * imaginary
        h[i] = real
        g[i] = imaginary


@kernel
def _advance_four(x_0, x_1, x_2, x_3, y_0, y_1, y_2, y_3, q, w, p, r, h, g):
    fused()
    for i in range(WIDTH):
        q_i, p_i, w_i, r_i = q[i], p[i], w[i], r[i]
        a_0 = q_i * h[i] - p_i * g[i] + x_0[i]
        b_0 = q_i * g[i] + p_i * h[i]
        a_1 = q_i * a_0 - p_i * b_0 + x_1[i]
        b_1 = q_i * b_0 + p_i * a_0
        a_2 = q_i * a_1 - p_i * b_1 + x_2[i]
        b_2 = q_i * b_1 + p_i * a_1
        a_3 = q_i * a_2 - p_i * b_2 + x_3[i]
        b_3 = q_i * b_2 + p_i * a_2
        y_0[i] += w_i * a_0 - r_i * b_0
        y_1[i] += w_i * a_1 - r_i * b_1
        y_2[i] += w_i * a_2 - r_i * b_2
        y_3[i] += w_i * a_3 - r_i * b_3
        h[i] = a_3
        g[i] = b_3


@kernel
def _advance_real(x, y, q, w, h):
    fused()
    for i in range(WIDTH):
        after = q[i] * h[i] + x[i]
        y[i] += w[i] * after
        h[i] = after


@kernel
def _advance_real_four(x_0, x_1, x_2, x_3, y_0, y_1, y_2, y_3, q, w, h):
    fused()
    for i in range(WIDTH):
        a_0 = q[i] * h[i] + x_0[i]
        a_1 = q[i] * a_0 + x_1[i]
        a_2 = q[i] * a_1 + x_2[i]
        a_3 = q[i] * a_2 + x_3[i]
        y_0[i] += w[i] * a_0
        y_1[i] += w[i] * a_1
        y_2[i] += w[i] * a_2
        y_3[i] += w[i] * a_3
        h[i] = a_3


@kernel
def advance_all(x, y, q, w, h, steps):
    """Tokens forward, for every state."""
    for n in range(q.shape[1]):
        if steps == STEP:
            _advance_four(
                x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3],
                q[0, n], w[0, n], q[1, n], w[1, n], h[0, n], h[1, n],
            )  # fmt: skip
        else:
            for k in range(steps):
                _advance(x[k], y[k], q[0, n], w[0, n], q[1, n], w[1, n], h[0, n], h[1, n])


@kernel
def advance_all_real(x, y, q, w, h, steps):
    """As `advance_all`, of real numbers."""
    for n in range(q.shape[0]):
        if steps == STEP:
            _advance_real_four(x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3], q[n], w[n], h[n])
        else:
            for k in range(steps):
                _advance_real(x[k], y[k], q[n], w[n], h[n])


@kernel
def _gather(x, dy, q, p, h, g, s, z, to_w, to_r, to_q, to_p):
    """One token forward: h, its derivative s by q, and the sums of dy h and dy s. The second of each pair of arguments
    is the imaginary part."""
    fused()
    for i in range(WIDTH):
        slope, turned = q[i] * s[i] - p[i] * z[i] + h[i], q[i] * z[i] + p[i] * s[i] + g[i]
        real, imaginary = q[i] * h[i] - p[i] * g[i] + x[i], q[i] * g[i] + p[i] * h[i]
        to_w[i] += dy[i] * real
        to_r[i] += dy[i] * imaginary
        to_q[i] += dy[i] * slope
        to_p[i] += dy[i] * turned
        h[i], g[i], s[i], z[i] = real, imaginary, slope, turned


@kernel
def _gather_four(x_0, x_1, x_2, x_3, dy_0, dy_1, dy_2, dy_3, q, p, h, g, s, z, to_w, to_r, to_q, to_p):
    fused()
    for i in range(WIDTH):
        q_i, p_i, h_0, g_0 = q[i], p[i], h[i], g[i]
        s_1, z_1 = q_i * s[i] - p_i * z[i] + h_0, q_i * z[i] + p_i * s[i] + g_0
        h_1, g_1 = q_i * h_0 - p_i * g_0 + x_0[i], q_i * g_0 + p_i * h_0
        s_2, z_2 = q_i * s_1 - p_i * z_1 + h_1, q_i * z_1 + p_i * s_1 + g_1
        h_2, g_2 = q_i * h_1 - p_i * g_1 + x_1[i], q_i * g_1 + p_i * h_1
        s_3, z_3 = q_i * s_2 - p_i * z_2 + h_2, q_i * z_2 + p_i * s_2 + g_2
        h_3, g_3 = q_i * h_2 - p_i * g_2 + x_2[i], q_i * g_2 + p_i * h_2
        s_4, z_4 = q_i * s_3 - p_i * z_3 + h_3, q_i * z_3 + p_i * s_3 + g_3
        h_4, g_4 = q_i * h_3 - p_i * g_3 + x_3[i], q_i * g_3 + p_i * h_3
        to_w[i] += dy_0[i] * h_1 + dy_1[i] * h_2 + dy_2[i] * h_3 + dy_3[i] * h_4
        to_r[i] += dy_0[i] * g_1 + dy_1[i] * g_2 + dy_2[i] * g_3 + dy_3[i] * g_4
        to_q[i] += dy_0[i] * s_1 + dy_1[i] * s_2 + dy_2[i] * s_3 + dy_3[i] * s_4
        to_p[i] += dy_0[i] * z_1 + dy_1[i] * z_2 + dy_2[i] * z_3 + dy_3[i] * z_4
        h[i], g[i], s[i], z[i] = h_4, g_4, s_4, z_4


@kernel
def _gather_real(x, dy, q, h, s, to_w, to_q):
    fused()
    for i in range(WIDTH):
        s[i] = q[i] * s[i] + h[i]
        h[i] = q[i] * h[i] + x[i]
        to_w[i] += dy[i] * h[i]
        to_q[i] += dy[i] * s[i]


@kernel
def _gather_real_four(x_0, x_1, x_2, x_3, dy_0, dy_1, dy_2, dy_3, q, h, s, to_w, to_q):
    fused()
    for i in range(WIDTH):
        q_i, h_0 = q[i], h[i]
        s_1, h_1 = q_i * s[i] + h_0, q_i * h_0 + x_0[i]
        s_2, h_2 = q_i * s_1 + h_1, q_i * h_1 + x_1[i]
        s_3, h_3 = q_i * s_2 + h_2, q_i * h_2 + x_2[i]
        s_4, h_4 = q_i * s_3 + h_3, q_i * h_3 + x_3[i]
        to_w[i] += dy_0[i] * h_1 + dy_1[i] * h_2 + dy_2[i] * h_3 + dy_3[i] * h_4
        to_q[i] += dy_0[i] * s_1 + dy_1[i] * s_2 + dy_2[i] * s_3 + dy_3[i] * s_4
        h[i], s[i] = h_4, s_4


@kernel
def gather_all(x, dy, q, h, s, to_w, to_q, steps):
    """Tokens forward, for every state."""
    for n in range(q.shape[1]):
        if q.shape[0] == 1 and steps == STEP:
            _gather_real_four(
                x[0], x[1], x[2], x[3], dy[0], dy[1], dy[2], dy[3], q[0, n], h[0, n], s[0, n], to_w[0, n], to_q[0, n]
            )
        elif q.shape[0] == 1:
            for k in range(steps):
                _gather_real(x[k], dy[k], q[0, n], h[0, n], s[0, n], to_w[0, n], to_q[0, n])
        elif steps == STEP:
            _gather_four(
                x[0], x[1], x[2], x[3], dy[0], dy[1], dy[2], dy[3], q[0, n], q[1, n], h[0, n], h[1, n],
                s[0, n], s[1, n], to_w[0, n], to_w[1, n], to_q[0, n], to_q[1, n],
            )  # fmt: skip
        else:
            for k in range(steps):
                _gather(
                    x[k], dy[k], q[0, n], q[1, n], h[0, n], h[1, n],
                    s[0, n], s[1, n], to_w[0, n], to_w[1, n], to_q[0, n], to_q[1, n],
                )  # fmt: skip


@kernel
def _reverse(dy, dx, q, w, p, r, u, v):
    """One token in reverse. u + iv: the conjugate of the gradient of h before the token, first of that after it."""
    fused()
    for i in range(WIDTH):
        real, imaginary = u[i] + w[i] * dy[i], v[i] + r[i] * dy[i]
        dx[i] += real
        u[i], v[i] = q[i] * real - p[i] * imaginary, q[i] * imaginary + p[i] * real


@kernel
def _reverse_four(dy_0, dy_1, dy_2, dy_3, dx_0, dx_1, dx_2, dx_3, q, w, p, r, u, v):
    fused()
    for i in range(WIDTH):
        q_i, p_i, w_i, r_i = q[i], p[i], w[i], r[i]
        u_3, v_3 = u[i] + w_i * dy_3[i], v[i] + r_i * dy_3[i]
        u_2, v_2 = q_i * u_3 - p_i * v_3 + w_i * dy_2[i], q_i * v_3 + p_i * u_3 + r_i * dy_2[i]
        u_1, v_1 = q_i * u_2 - p_i * v_2 + w_i * dy_1[i], q_i * v_2 + p_i * u_2 + r_i * dy_1[i]
        u_0, v_0 = q_i * u_1 - p_i * v_1 + w_i * dy_0[i], q_i * v_1 + p_i * u_1 + r_i * dy_0[i]
        dx_0[i] += u_0
        dx_1[i] += u_1
        dx_2[i] += u_2
        dx_3[i] += u_3
        u[i], v[i] = q_i * u_0 - p_i * v_0, q_i * v_0 + p_i * u_0


@kernel
def _reverse_real(dy, dx, q, w, u):
    fused()
    for i in range(WIDTH):
        after = u[i] + w[i] * dy[i]
        dx[i] += after
        u[i] = q[i] * after


@kernel
def _reverse_real_four(dy_0, dy_1, dy_2, dy_3, dx_0, dx_1, dx_2, dx_3, q, w, u):
    fused()
    for i in range(WIDTH):
        u_3 = u[i] + w[i] * dy_3[i]
        u_2 = q[i] * u_3 + w[i] * dy_2[i]
        u_1 = q[i] * u_2 + w[i] * dy_1[i]
        u_0 = q[i] * u_1 + w[i] * dy_0[i]
        dx_0[i] += u_0
        dx_1[i] += u_1
        dx_2[i] += u_2
        dx_3[i] += u_3
        u[i] = q[i] * u_0


@kernel
def reverse_all(dy, dx, q, w, u, steps):
    """Tokens in reverse, for every state."""
    for n in range(q.shape[1]):
        if q.shape[0] == 1 and steps == STEP:
            _reverse_real_four(dy[0], dy[1], dy[2], dy[3], dx[0], dx[1], dx[2], dx[3], q[0, n], w[0, n], u[0, n])
        elif q.shape[0] == 1:
            for k in range(steps - 1, -1, -1):
                _reverse_real(dy[k], dx[k], q[0, n], w[0, n], u[0, n])
        elif steps == STEP:
            _reverse_four(
                dy[0], dy[1], dy[2], dy[3], dx[0], dx[1], dx[2], dx[3],
                q[0, n], w[0, n], q[1, n], w[1, n], u[0, n], u[1, n],
            )  # fmt: skip
        else:
            for k in range(steps - 1, -1, -1):
                _reverse(dy[k], dx[k], q[0, n], w[0, n], q[1, n], w[1, n], u[0, n], u[1, n])
