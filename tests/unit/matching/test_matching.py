import pytest
import torch
from jaxtyping import TypeCheckError

from tests.oracles import matching as oracle
from tests.tolerances import assert_close
from vos_lightning.matching import surjective
from vos_lightning.matching.bijective import GaussianKernel, TopK, filter_rows, gaussian_kernel, top_k
from vos_lightning.matching.equalized import equalized_match
from vos_lightning.matching.similarity import cosine, dot, negative_squared_l2
from vos_lightning.matching.surjective import surjective_match

BATCH, OBJECTS, CHANNELS, MEMORY, GRID = 2, 3, 4, 7, (3, 4)
QUERY = GRID[0] * GRID[1]


def keys(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, CHANNELS, MEMORY, generator=generator), torch.randn(BATCH, CHANNELS, QUERY, generator=generator)


def problem(low: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    similarity = torch.rand(BATCH, MEMORY, QUERY, generator=generator) * (1 - low) + low
    masks = torch.rand(BATCH, OBJECTS, MEMORY, generator=generator)
    masks[:, :, 0], masks[:, :, 1] = 0, 1
    readable = torch.rand(BATCH, OBJECTS, MEMORY, generator=generator) > 0.4
    readable[0, 1] = False
    return similarity, masks, readable


@pytest.mark.parametrize(("function", "kind"), [(dot, "dot"), (cosine, "cosine"), (negative_squared_l2, "l2")])
def test_similarities_equal_the_oracle(function, kind):
    memory, query = keys()
    assert_close(function(memory, query), oracle.similarity(memory, query, kind))


def test_cosine_of_a_zero_key_is_zero_with_finite_gradients():
    memory, query = keys()
    memory[:, :, 2] = 0
    memory.requires_grad_()
    similarity = cosine(memory, query)
    similarity.sum().backward()
    assert (similarity[:, 2] == 0).all()
    assert memory.grad is not None
    assert memory.grad.isfinite().all()


@pytest.mark.parametrize("function", [dot, cosine, negative_squared_l2])
def test_similarities_are_float32_under_autocast(function):
    memory, query = keys()
    expected = function(memory, query)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(function(memory, query), expected, rtol=0, atol=0)
        assert function(memory.bfloat16(), query.bfloat16()).dtype == torch.float32


def cut(monkeypatch, chunk):
    """Most elements of a part: 1 for one memory pixel at a time."""
    for name in ("MAX_ELEMENTS", "MAX_ELEMENTS_ON_CPU"):
        monkeypatch.setattr(surjective, name, chunk)


@pytest.mark.parametrize("low", [0.0, -1.0], ids=["affinity", "raw_cosine"])
@pytest.mark.parametrize("chunk", [surjective.MAX_ELEMENTS, 1], ids=["whole", "chunked"])
@pytest.mark.parametrize("grad", [False, True])
def test_surjective_equals_the_oracle(low, chunk, grad, monkeypatch):
    cut(monkeypatch, chunk)
    similarity, masks, readable = problem(low)
    scores = surjective_match(similarity.requires_grad_(grad), masks, readable)
    assert_close(scores.detach(), oracle.surjective(similarity.detach(), masks, readable))


def test_surjective_without_anything_readable_is_zero():
    similarity, masks, readable = problem()
    assert (surjective_match(similarity, masks, readable)[0, 1] == 0).all()


def test_surjective_without_objects():
    similarity, masks, readable = problem()
    assert surjective_match(similarity, masks[:, :0], readable[:, :0]).shape == (BATCH, 0, 2, QUERY)
    similarity.requires_grad_()
    assert surjective_match(similarity, masks[:, :0], readable[:, :0]).shape == (BATCH, 0, 2, QUERY)


@pytest.mark.parametrize("chunk", [surjective.MAX_ELEMENTS, 1], ids=["whole", "chunked"])
def test_surjective_gradient_is_that_of_the_maximum(chunk, monkeypatch):
    cut(monkeypatch, chunk)
    similarity, masks, readable = problem()
    torch.manual_seed(2)
    upstream = torch.randn(BATCH, OBJECTS, 2, QUERY)
    upstream[0, 1] = 0  # every row ties at 0 where nothing is readable: the winner is arbitrary
    similarity.requires_grad_(), masks.requires_grad_()
    ours = torch.autograd.grad(surjective_match(similarity, masks, readable), (similarity, masks), upstream)

    weights = torch.stack([1 - masks, masks], dim=2) * readable[:, :, None]
    plain = (weights[..., None] * similarity[:, None, None]).amax(dim=3)
    expected = torch.autograd.grad(plain, (similarity, masks), upstream)
    for actual, wanted in zip(ours, expected, strict=True):
        assert wanted.abs().sum() > 0
        assert_close(actual, wanted)


@pytest.mark.parametrize("which", ["similarity", "masks"])
def test_one_of_the_two_may_have_no_gradient(which):
    similarity, masks, readable = problem()
    chosen = {"similarity": similarity, "masks": masks}[which].requires_grad_()
    surjective_match(similarity, masks, readable).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.abs().sum() > 0


@pytest.mark.parametrize("chunk", [surjective.MAX_ELEMENTS, 1], ids=["whole", "chunked"])
def test_the_first_of_equal_matches_gets_the_gradient(chunk, monkeypatch):
    cut(monkeypatch, chunk)
    similarity = torch.tensor([[[0.5], [0.9], [0.9], [0.9]]]).requires_grad_()
    masks, readable = torch.ones(1, 1, 4), torch.ones(1, 1, 4, dtype=torch.bool)
    surjective_match(similarity, masks, readable)[0, 0, 1].sum().backward()
    assert similarity.grad is not None
    assert similarity.grad.flatten().tolist() == [0, 1, 0, 0]


def test_surjective_gradcheck():
    similarity, masks, readable = (x.double() if x.is_floating_point() else x for x in problem())
    masks = masks * 0.8 + 0.1
    readable[0, 1] = True
    torch.autograd.gradcheck(
        lambda s, m: surjective_match(s, m, readable), (similarity.requires_grad_(), masks.requires_grad_()), eps=1e-7
    )


@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0])
def test_equalized_equals_the_oracle(scale):
    inner = dot(*keys()) * 3
    _, masks, readable = problem()
    assert_close(equalized_match(inner, masks, readable, scale), oracle.equalized(inner, masks, readable, scale))


def test_equalized_survives_large_inner_products():
    inner = dot(*keys()) * 1e4
    _, masks, readable = problem()
    assert equalized_match(inner, masks, readable).isfinite().all()


@pytest.mark.parametrize(
    ("row_filter", "filter_row"),
    [
        (GaussianKernel(1.5), lambda row: oracle.kernel_row(row, GRID[1], 1.5)),
        (GaussianKernel(24.0, unit="pixels"), lambda row: oracle.kernel_row(row, GRID[1], 1.5)),
        (TopK(3), lambda row: oracle.top_k_row(row, 3, "zero")),
        (TopK(3, fill="minimum"), lambda row: oracle.top_k_row(row, 3, "minimum")),
        (TopK(1), lambda row: oracle.top_k_row(row, 1, "zero")),
        (TopK(QUERY), lambda row: row),
    ],
    ids=lambda value: "oracle" if callable(value) else str(value),
)
def test_filtering_shared_rows_equals_filtering_every_object_and_class(row_filter, filter_row):
    similarity, masks, _ = problem()
    everything = torch.ones_like(masks, dtype=torch.bool)
    filtered = filter_rows(similarity, row_filter, GRID, stride=16)
    assert_close(surjective_match(filtered, masks, everything), oracle.bijective(similarity, masks, filter_row))


def test_top_k_keeps_ties_and_more_than_there_are():
    similarity, _, _ = problem()
    similarity[0, 0] = 0.5
    similarity[0, 0, 0] = 0.9
    similarity[0, 0, 1] = 0.1
    kept = filter_rows(similarity, TopK(2), GRID, stride=16)[0, 0]
    assert (kept > 0).sum() == QUERY - 1
    assert filter_rows(similarity, TopK(10**6), GRID, stride=16) is similarity


def test_others_than_the_best_are_zero_unless_told():
    similarity, _, _ = problem()
    assert torch.equal(top_k(similarity, 2), top_k(similarity, 2, "zero"))
    assert not torch.equal(top_k(similarity, 2), top_k(similarity, 2, "minimum"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_kernels_have_the_type_of_the_similarity(dtype):
    assert gaussian_kernel(problem()[0].to(dtype), GRID, 1.5).dtype == dtype


def test_no_filter_returns_the_similarity_itself():
    similarity, _, _ = problem()
    assert filter_rows(similarity, None, GRID, stride=16) is similarity


@pytest.mark.parametrize(
    "build",
    [
        lambda: GaussianKernel(0.0),
        lambda: GaussianKernel(2.0, unit="metres"),  # type: ignore[arg-type]
        lambda: TopK(0),
        lambda: TopK(4, fill="nearest"),  # type: ignore[arg-type]
    ],
)
def test_filters_refuse_nonsense(build):
    with pytest.raises((ValueError, TypeCheckError)):  # the tests' type checker is faster than we are where it can see it
        build()
