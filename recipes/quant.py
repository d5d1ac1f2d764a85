"""The storage formats of the checkpoint: rounding, encoding and decoding of FP8 (E4M3) and MXFP4 (E2M1) values.

Scales are powers of two (UE8M0). All rounding is to nearest even and exact, by arithmetic on float32 values, so that it
runs and compiles anywhere. Fake quantisation returns rounded values and passes gradients straight through.
"""
import torch

E4M3_MAX, E2M1_MAX = 448.0, 6.0


def floor_power(x):
    """The largest power of two <= x, for positive normal float32 x."""
    return (x.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)


def ceil_power(x):
    """The smallest power of two >= x, for positive normal float32 x."""
    low = floor_power(x)
    return torch.where(low < x, low * 2, low)


def round_e4m3(x):
    """Nearest E4M3 value of float32 x; |x| must be <= 448."""
    step = floor_power(x.abs().clamp(min=2.0 ** -6)) * 0.125
    return torch.round(x / step) * step


def round_e2m1(x):
    """Nearest E2M1 value of float32 x, clamped to +-6."""
    x = x.clamp(-E2M1_MAX, E2M1_MAX)
    step = floor_power(x.abs().clamp(min=1.0)) * 0.5
    return torch.round(x / step) * step


def _straight_through(x, rounded):
    return x + (rounded - x).detach()


def fake_fp8(x, block):
    """Activation rounding: E4M3 with one scale per `block` channels of the last axis."""
    v = x.float().unflatten(-1, (-1, block))
    scale = ceil_power(v.detach().abs().amax(-1, keepdim=True).clamp(min=1e-4) * (1 / E4M3_MAX))
    return _straight_through(x, (round_e4m3(v.detach() / scale) * scale).flatten(-2).to(x.dtype))


def fake_fp4(x):
    """Activation rounding: E2M1 with one scale per 32 channels of the last axis."""
    v = x.float().unflatten(-1, (-1, 32))
    scale = ceil_power(v.detach().abs().amax(-1, keepdim=True).clamp(min=6 * 2.0 ** -126) * (1 / E2M1_MAX))
    return _straight_through(x, (round_e2m1(v.detach() / scale) * scale).flatten(-2).to(x.dtype))


def hadamard(n):
    """The orthonormal Walsh-Hadamard matrix [n, n] in Sylvester order."""
    m = torch.ones(1, 1)
    while m.shape[0] < n:
        m = torch.cat((torch.cat((m, m), 1), torch.cat((m, -m), 1)), 0)
    return m * n ** -0.5


def fp8_weight(w):
    """w [..., out, in] float32 -> (E4M3 values, scales [..., ceil(out/128), ceil(in/128)]); their product is stored."""
    o, i = w.shape[-2:]
    padded = torch.nn.functional.pad(w, (0, -i % 128, 0, -o % 128))
    tiles = padded.unflatten(-1, (-1, 128)).unflatten(-3, (-1, 128))
    scale = ceil_power(tiles.abs().amax((-3, -1)).clamp(min=1e-12) * (1 / E4M3_MAX))
    values = round_e4m3(tiles / scale[..., :, None, :, None]).reshape(padded.shape)[..., :o, :i]
    return values, scale


def fp4_weight(w):
    """w [..., in] float32 -> (E2M1 values, scales [..., in/32]).

    Of the two powers of two around max/6 the one with the smaller squared error is kept: the smaller one clips the
    largest values and resolves the others better.
    """
    v = w.unflatten(-1, (-1, 32))
    high = ceil_power(v.abs().amax(-1, keepdim=True).clamp(min=1e-12) * (1 / E2M1_MAX))
    q_high, q_low = round_e2m1(v / high), round_e2m1(v / (high / 2))
    error_high = (q_high * high - v).square().sum(-1, keepdim=True)
    error_low = (q_low * (high / 2) - v).square().sum(-1, keepdim=True)
    low_wins = error_low < error_high
    return torch.where(low_wins, q_low, q_high).flatten(-2), torch.where(low_wins, high / 2, high)[..., 0]


def stored_values(w, storage):
    """The values that a float32 tensor has after export in the given storage (fp8, fp4, bf16 or f32)."""
    if storage == "fp8":
        values, scale = fp8_weight(w)
        scale = scale.repeat_interleave(128, -2)[..., :w.shape[-2], :].repeat_interleave(128, -1)[..., :w.shape[-1]]
        return values * scale
    if storage == "fp4":
        values, scale = fp4_weight(w)
        return values * scale.repeat_interleave(32, -1)
    return w.bfloat16().float() if storage == "bf16" else w


def e8m0_bytes(scale):
    """Power-of-two float32 scales -> their UE8M0 bytes."""
    return ((scale.contiguous().view(torch.int32) >> 23) & 255).to(torch.uint8)


def e4m3_bytes(values):
    """Float32 tensor of E4M3 values -> their codes as uint8."""
    a = values.abs()
    exponent = ((floor_power(a.clamp(min=2.0 ** -6)).view(torch.int32) >> 23) - 127)
    step = torch.ldexp(torch.ones_like(a), exponent - 3)
    mantissa = (a / step).to(torch.int32)                      # 8..15 for normal values, 0..7 for subnormal ones
    code = torch.where(mantissa >= 8, ((exponent + 7) << 3) + mantissa - 8, mantissa)
    return (code + torch.where(torch.signbit(values), 128, 0)).to(torch.uint8)


def e2m1_codes(values):
    """Float32 tensor of E2M1 values -> 4-bit codes as uint8."""
    a = values.abs()
    code = torch.where(a < 2, a * 2, torch.where(a < 4, a + 2, a / 2 + 4)).to(torch.uint8)
    return code + torch.where(torch.signbit(values), 8, 0).to(torch.uint8)
