"""The whole network once more, written from the description in plain loops, sharing nothing with the package."""

import math
from itertools import product

import torch


def straight_line(weights, config, x, c_noise, text, fps):
    """F of x `B C T H W`, from the weights by name."""
    B, _, T, H, W = x.shape
    D, N = config.width, config.num_heads
    K = D // N
    r, m, n = config.patch_size
    cells = list(product(range(T // r), range(H // m), range(W // n)))

    def linear(name, y):
        return torch.einsum("...i,oi->...o", y, weights[f"{name}.weight"])

    def rms(name, y):
        return y / torch.sqrt((y * y).mean(-1, keepdim=True) + 1e-6) * weights[f"{name}.weight"]

    def layer_norm(y):
        centred = y - y.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-6)

    def silu(y):
        return y / (1 + torch.exp(-y))

    def gelu(y):
        return y / 2 * (1 + torch.erf(y / math.sqrt(2)))

    # Patches: channel outermost, then (t, h, w) within the patch.
    columns = []
    for t, h, w in cells:
        patch = x[:, :, t * r : (t + 1) * r, h * m : (h + 1) * m, w * n : (w + 1) * n]
        columns.append(linear("patch_embedding", patch.reshape(B, -1)))
    z = torch.stack(columns, dim=1)

    # Learned positions: three tables summed, at unit root mean square.
    position = []
    for t, h, w in cells:
        e = sum(weights[f"position_embedding.{axis}"][i] for axis, i in zip("thw", (t, h, w), strict=True))
        position.append(e / (1e-6 + torch.sqrt((e * e).sum()) / math.sqrt(D)))
    position = torch.stack(position)

    # Rotary angles: (t, h, w) frequencies side by side, time in units of 1/24 s.
    spatial = 2 * (K // 6)
    angles = torch.zeros(B, len(cells), K // 2, dtype=x.dtype)
    for b, (token, cell) in product(range(B), enumerate(cells)):
        place = (cell[0] * 24 / fps[b].item(), cell[1], cell[2])
        row = []
        for index, ratio, dim in zip(place, config.rope_ratios, (K - 2 * spatial, spatial, spatial), strict=True):
            theta = 10000 * ratio ** (dim / (dim - 2))
            row += [index * theta ** (-2 * i / dim) for i in range(dim // 2)]
        angles[b, token] = torch.tensor(row, dtype=x.dtype)

    def rotated(y, head):
        """Channel i turns with channel i + K/2."""
        first, second = y[..., : K // 2], y[..., K // 2 :]
        cos, sin = torch.cos(angles), torch.sin(angles)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def attention(name, y, other, turn):
        q, k, v = linear(f"{name}.to_q", y), linear(f"{name}.to_k", other), linear(f"{name}.to_v", other)
        heads = []
        for head in range(N):
            own = slice(head * K, (head + 1) * K)
            qh, kh = turn(rms(f"{name}.norm_q", q[..., own]), head), turn(rms(f"{name}.norm_k", k[..., own]), head)
            score = torch.exp(torch.einsum("bik,bjk->bij", qh, kh) / math.sqrt(K))
            heads.append(torch.einsum("bij,bjk->bik", score / score.sum(-1, keepdim=True), v[..., own]))
        return linear(f"{name}.to_out", torch.cat(heads, dim=-1))

    # Noise level: the sinusoid itself is the embedding, its MLP the term that all modulations share.
    frequency = [math.exp(-math.log(10000) * i / (D / 2)) for i in range(D // 2)]
    waves = [[f(c * w) for f in (math.cos, math.sin) for w in frequency] for c in c_noise.tolist()]
    sinusoid = torch.tensor(waves, dtype=x.dtype)
    shared = linear("noise_embedding.linear_2", silu(linear("noise_embedding.linear_1", sinusoid)))
    embedding = rms("noise_embedding.norm", sinusoid)

    def modulation(name, parts):
        own = linear(f"{name}.up", linear(f"{name}.down", silu(embedding))) + shared[:, : parts * D]
        return [own[:, None, i * D : (i + 1) * D] for i in range(parts)]

    for i in range(config.depth):
        block = f"blocks.{i}"
        z = z + position
        shift, scale, gate = modulation(f"{block}.adaln_self", 3)
        y = layer_norm(z) * (1 + scale) + shift
        z = z + gate * attention(f"{block}.self_attention", y, y, rotated)
        shift, scale, gate = modulation(f"{block}.adaln_cross", 3)
        y = layer_norm(z) * (1 + scale) + shift
        z = z + gate * attention(f"{block}.cross_attention", y, text, lambda u, head: u)
        shift, scale, gate = modulation(f"{block}.adaln_mlp", 3)
        y = layer_norm(z) * (1 + scale) + shift
        z = z + gate * linear(f"{block}.mlp.layer2", gelu(linear(f"{block}.mlp.layer1", y)))

    shift, scale = modulation("final_layer.adaln", 2)
    z = linear("final_layer.linear", layer_norm(z) * (1 + scale) + shift)

    # Back to the grid: channel innermost, before it (h, w, t) within the patch.
    out = torch.zeros(B, config.channels, T, H, W, dtype=x.dtype)
    for token, (t, h, w) in enumerate(cells):
        for i, j, k, c in product(range(r), range(m), range(n), range(config.channels)):
            out[:, c, t * r + i, h * m + j, w * n + k] = z[:, token, ((j * n + k) * r + i) * config.channels + c]
    return out
