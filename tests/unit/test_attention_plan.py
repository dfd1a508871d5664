"""A packed row's plan lets each token see its own row and nothing else, whoever executes it."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers.utils.chat_template_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from trainer_core import versions
from trainer_core.acceleration import Behind, Savings, accelerate, attention
from trainer_core.acceleration.attention import _by_kernel, _by_segment, _gathered  # pyright: ignore[reportPrivateUsage]
from trainer_core.acceleration.packing import Packed, Plan, pack, pack_behind
from trainer_core.errors import SpecInvalid

Rows = list[list[int]]
# Two tokens, so that rows often begin alike.
ROWS = st.lists(st.lists(st.integers(1, 2), min_size=0, max_size=7), min_size=2, max_size=8).filter(any)


def padded(rows: Rows, *, left: bool = False) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        start = width - len(row) if left else 0
        ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, start : start + len(row)] = 1
    return ids, mask


def seen(plan: Plan) -> list[list[int]]:
    """Of each token of the packed row, the tokens that it attends to, in order, as the kernel reads the plan."""
    found: list[list[int]] = []
    queries, keys = plan.queries.tolist(), plan.keys.tolist()
    for i in range(len(queries) - 1):
        of_segment = plan.gather[keys[i] : keys[i + 1]].tolist()
        count = queries[i + 1] - queries[i]
        found += [of_segment[: len(of_segment) - count + j + 1] for j in range(count)]
    return found


def check(packed: Packed, rows: Rows, mask: Tensor, before: Packed | None = None) -> None:
    ids = [*(before.ids[0].tolist() if before else []), *packed.ids[0].tolist()]
    skipped = before.tokens if before else 0
    of_token = seen(packed.plan)
    for row, of_row, kept in zip(rows, packed.places, mask.bool(), strict=True):
        places = of_row[kept].tolist()
        assert [ids[place] for place in places] == row
        for end, place in enumerate(places, start=1):
            if place >= skipped:
                assert [ids[token] for token in of_token[place - skipped]] == row[:end]
                assert of_token[place - skipped] == places[:end]
                assert int(packed.positions[0, place - skipped]) == end - 1


@given(ROWS, st.booleans())
@settings(max_examples=200, deadline=None)
def test_each_token_sees_its_row_up_to_itself(rows: Rows, left: bool) -> None:
    ids, mask = padded(rows, left=left)
    packed = pack(ids, mask)
    check(packed, rows, mask)
    assert packed.plan.longest == (
        max((end - start for (start, end), _ in packed.plan.pieces), default=0),
        max((end - start for _, (start, end) in packed.plan.pieces), default=0),
    )


@given(ROWS, st.data())
@settings(max_examples=200, deadline=None)
def test_a_batch_behind_another_sees_what_it_shares_with_it(rows: Rows, data: st.DataObject) -> None:
    row = st.lists(st.integers(1, 2), min_size=0, max_size=7)
    second = data.draw(st.lists(row, min_size=len(rows), max_size=len(rows)).filter(any))
    first_ids, first_mask = padded(rows)
    ids, mask = padded(second)
    earlier = pack(first_ids, first_mask)
    check(pack_behind(ids, mask, earlier, first_ids, first_mask), second, mask, earlier)


def test_rows_that_are_all_behind_another_batch_have_no_plan_to_execute() -> None:
    ids, mask = padded([[1, 2, 1], [2, 2, 2]])
    earlier = pack(ids, mask)
    packed = pack_behind(ids, mask, earlier, ids, mask)
    assert packed.tokens == 0
    assert packed.plan.longest == (0, 0)


def dense(
    query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **options: Any
) -> Tensor:
    """What PyTorch documents of the kernel for rows of varied length, without any of our numbers but those it is given."""
    assert options["window_size"] == (-1, 0)
    groups = query.shape[1] // key.shape[1]
    assert options.get("enable_gqa", True)
    found: list[Tensor] = []
    for i in range(len(cu_q) - 1):
        q = query[cu_q[i] : cu_q[i + 1]]
        k, v = (tensor[cu_k[i] : cu_k[i + 1]].repeat_interleave(groups, dim=1) for tensor in (key, value))
        assert len(q) <= max_q
        assert len(k) <= max_k
        scores = torch.einsum("qhd,khd->hqk", q, k) * options["scale"]
        hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
        found.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(found)


@given(ROWS, st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_kernel_and_loop_execute_the_same_plan(rows: Rows, seed: int) -> None:
    packed = pack(*padded(rows))
    torch.manual_seed(seed)
    query, *sources = (torch.randn(packed.tokens, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    results: list[list[Tensor]] = []
    for execute in (_by_kernel, _by_segment):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "varlen_attn", dense)
            keys, values = (_gathered(source, packed.plan) for source in sources)
            result = execute(query, keys, values, packed.plan, 8**-0.5)
        weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view_as(result)
        results.append([result, *torch.autograd.grad((result * weights).sum(), [query, *sources])])
    for by_kernel, by_segment in zip(*results, strict=True):
        torch.testing.assert_close(by_kernel, by_segment)


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_the_gradient_of_gathered_keys_is_that_of_indexing(rows: Rows) -> None:
    plan = pack(*padded(rows)).plan
    source = torch.randn(len(plan.uses if plan.uses is not None else ()), 2, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(plan.gather), 2, 4, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((gathered * weights).sum(), source)[0]
        for gathered in (_gathered(source, plan), source[plan.gather])
    )
    torch.testing.assert_close(found, expected)


def small_model(layers: int) -> Any:
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=layers,
        attn_implementation="sdpa",
    )
    return Qwen2ForCausalLM(config)


def always(answer: bool) -> Any:
    return lambda *_: answer


class Count(TorchDispatchMode):
    """Counts operations that would each start a kernel on a GPU."""

    VIEWS = re.compile(r"view|reshape|transpose|permute|expand|slice|select|detach|alias|unsqueeze|squeeze|split|aten\.t\.")

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not self.VIEWS.search(str(func))
        return func(*args, **(kwargs or {}))


def test_what_a_layer_asks_of_a_gpu_does_not_grow_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_call(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        return query + (key.sum() + value.sum())

    monkeypatch.setattr(attention, "varlen_attn", one_call)
    monkeypatch.setattr(attention, "kernel_takes", always(True))

    def operations(pairs: int, layers: int) -> int:
        model = small_model(layers)
        accelerate(model, Savings())
        ids = torch.randint(1, 60, (2 * pairs, 24))
        ids[pairs:, :12] = ids[:pairs, :12]
        labels = ids.clone()
        labels[:, :12] = -100
        with Count() as count:
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
            output.log_probs.sum().backward()
        return count.operations

    few, many = (operations(pairs, 3) - operations(pairs, 2) for pairs in (2, 16))
    assert few == many
    assert few < 130


def test_a_batch_behind_the_first_goes_through_the_kernel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = small_model(2).double()
    accelerate(model, Savings())
    ids = torch.randint(1, 60, (4, 12))
    second = ids.clone()
    second[:, 6:] = ids[:, 6:].roll(1, 0)
    mask = torch.ones_like(ids)
    answers: list[Tensor] = []
    for by_kernel in (False, True):
        monkeypatch.setattr(attention, "kernel_takes", always(by_kernel))
        monkeypatch.setattr(attention, "varlen_attn", dense)
        behind = Behind(second, mask, second)
        model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True, behind=behind)
        assert behind.log_probs is not None
        answers.append(behind.log_probs)
    torch.testing.assert_close(*answers)


@pytest.fixture
def reloaded() -> Iterator[None]:
    yield
    importlib.reload(versions)


@pytest.mark.usefixtures("reloaded")
def test_an_older_torch_is_not_asked_to_group_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("enable_gqa" in inspect.signature(varlen.varlen_attn).parameters) == bool(versions.GROUPED_QUERIES)
    monkeypatch.setattr(varlen, "varlen_attn", always(True))
    assert importlib.reload(versions).GROUPED_QUERIES == {}


@pytest.mark.usefixtures("reloaded")
def test_an_older_transformers_refuses_to_encode_control_tokens_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers.utils.chat_template_utils, "mark_control_tokens")
    older = importlib.reload(versions)
    with pytest.raises(SpecInvalid, match=r"needs transformers 5\.23"):
        older.mark_control_tokens("<|im_end|>", re.compile("x"))
