import itertools

import pytest
import torch

from tests.oracles import readout as oracle
from tests.tolerances import assert_close
from vos_lightning.matching import readout
from vos_lightning.matching.readout import read_memory
from vos_lightning.propagation.memory import Bank, MemoryFrame

BATCH, OBJECTS, KEY, VALUE, MEMORY, QUERY = 2, 2, 4, 5, 6, 4
SCALES = {"dot": KEY**-0.5, "l2": KEY**-0.5, "cosine": 1.0}


def problem() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    readable = torch.rand(BATCH, OBJECTS, MEMORY, generator=generator) > 0.4
    readable[1, 1] = False
    return {
        "shared": normal(BATCH, KEY, MEMORY),
        "own": normal(BATCH, OBJECTS, KEY, MEMORY),
        "query": normal(BATCH, KEY, QUERY),
        "values": normal(BATCH, OBJECTS, VALUE, MEMORY),
        "readable": readable,
        "prior": torch.rand(BATCH, OBJECTS, MEMORY, QUERY, generator=generator) + 0.1,
    }


@pytest.mark.parametrize("kind", ["dot", "l2", "cosine"])
@pytest.mark.parametrize("top_k", [None, 3, 50])
@pytest.mark.parametrize("own_keys", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize(
    ("masked", "with_prior"), [("no", "no"), ("shared", "shared"), ("own", "no"), ("no", "own"), ("own", "own")]
)
def test_equals_the_oracle(kind, top_k, own_keys, masked, with_prior, monkeypatch):
    p = problem()
    for name in ("MAX_ELEMENTS", "MAX_ELEMENTS_ON_CPU"):
        monkeypatch.setattr(readout, name, BATCH * OBJECTS * MEMORY * 3)  # several chunks of queries
    rows = {"no": slice(0, 0), "shared": slice(0, 1), "own": slice(None)}
    readable, prior = p["readable"][:, rows[masked]], p["prior"][:, rows[with_prior]]
    actual = read_memory(
        p["own"] if own_keys else p["shared"],
        p["query"],
        p["values"],
        readable if masked != "no" else None,
        similarity=kind,
        top_k=top_k,
        log_prior=prior.log() if with_prior != "no" else None,
    )
    whole = (BATCH, OBJECTS, MEMORY)
    expected = oracle.read(
        p["own"] if own_keys else p["shared"][:, None].expand(-1, OBJECTS, -1, -1),
        p["query"],
        p["values"],
        readable.expand(whole) if masked != "no" else torch.ones(whole),
        kind,
        SCALES[kind],
        top_k,
        prior.expand(*whole, QUERY) if with_prior != "no" else torch.ones(*whole, QUERY),
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("top_k", [None, 3])
def test_huge_similarities_and_nothing_readable_stay_finite(top_k):
    p = problem()
    keys, values = (1e4 * p["shared"]).requires_grad_(), p["values"].requires_grad_()
    out = read_memory(keys, 1e4 * p["query"], values, p["readable"], similarity="l2", top_k=top_k)
    assert out.isfinite().all()
    assert out[1, 1].eq(0).all()
    out.sum().backward()
    assert keys.grad.isfinite().all()
    assert values.grad[1, 1].eq(0).all()


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("own_keys", [False, True], ids=["shared", "own"])
def test_gradients(top_k, own_keys):
    p = {name: x.double() if x.is_floating_point() else x for name, x in problem().items()}
    inputs = [p["own" if own_keys else "shared"], p["query"], p["values"], p["prior"].log()]

    def read(keys, query, values, log_prior):
        return read_memory(keys, query, values, p["readable"], similarity="l2", top_k=top_k, log_prior=log_prior)

    # ``fast_mode``: random projections of the Jacobian.
    assert torch.autograd.gradcheck(read, [x.requires_grad_() for x in inputs], fast_mode=True)


def test_the_layout_of_the_values_does_not_matter():
    p = problem()
    channels_last = p["values"].transpose(2, 3).contiguous().transpose(2, 3)
    for top_k in (None, 3):
        assert_close(read_memory(p["shared"], p["query"], channels_last, top_k=top_k), read_memory(
            p["shared"], p["query"], p["values"], top_k=top_k
        ))  # fmt: skip


def test_half_precision_values_are_weighed_in_float32():
    p = problem()
    out = read_memory(p["shared"], p["query"], p["values"].bfloat16(), top_k=3)
    assert out.dtype == torch.bfloat16
    assert_close(out, read_memory(p["shared"], p["query"], p["values"], top_k=3).bfloat16())


def test_wrong_arguments():
    p = problem()
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        read_memory(p["shared"], p["query"], p["values"], top_k=0)


def bank(*readable: list[bool]) -> Bank[torch.Tensor]:
    frames = [MemoryFrame(torch.randn(1, 3, 2, 2), t, torch.tensor([row]), permanent=False) for t, row in enumerate(readable)]
    return Bank(tuple(frames))


def test_readers_are_as_few_as_possible():
    assert bank([True, True], [True, True]).readers is None
    assert bank([True, False], [True, False]).readers is None  # the second object reads nothing: it does not exist
    late = bank([True, False], [True, True])
    assert torch.equal(late.readers, late.readable)
    hidden = bank([True, True], [False, False])
    assert hidden.readers.shape == (1, 1, 8)
    assert torch.equal(hidden.readers[0, 0], hidden.readable[0, 0])


def test_stacking_keeps_channels_together():
    frames = [torch.randn(1, 2, 3, 4, 5) for _ in range(2)]
    last = [x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in frames]
    expected = torch.cat([x.flatten(-2) for x in frames], dim=-1)
    for entries, inner in itertools.product((frames, last), (-1, -2)):
        stacked = Bank(tuple(MemoryFrame(x, t, torch.ones(1, 2, dtype=torch.bool), False) for t, x in enumerate(entries))).entry
        assert torch.equal(stacked, expected)
        if (entries is last) == (inner == -2):
            assert stacked.stride(inner) == 1
