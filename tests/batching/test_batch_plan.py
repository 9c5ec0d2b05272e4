"""Micro-batches by token budget: every example once, none over the budget, few positions wasted, the same for the same seed."""

import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from boxtune.batching.batch_plan import WINDOW, Limit, PlannedBatches, padding_share, plan, random_batches

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=60)
LIMITS = st.one_of(
    st.builds(Limit, tokens=st.integers(1, 1000), packed=st.booleans()), st.builds(Limit, examples=st.integers(1, 9))
)


def batches_of(sampler: PlannedBatches, epoch: int) -> list[list[int]]:
    sampler.epoch.fill_(epoch)
    return list(sampler)


@given(lengths=LENGTHS, limit=LIMITS, seed=st.integers(0, 9), processes=st.integers(1, 3))
def test_every_epoch_has_every_example_once_within_the_limit(lengths, limit, seed, processes):
    sampler = PlannedBatches(lengths, limit, seed, epochs=3, processes=processes)
    for epoch in range(3):
        batches = batches_of(sampler, epoch)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        for batch in batches:
            of_batch = [lengths[row] for row in batch]
            held = sum(of_batch) if limit.packed else len(batch) * max(of_batch)
            allowed = len(batch) <= limit.examples if limit.examples else held <= limit.tokens
            assert allowed or len(batch) == 1, "only an example that exceeds the budget by itself is over it"
        assert len(batches) == len(sampler), "the trainer asks for the number once"
        assert len(batches) % processes == 0 or len(batches) == len(lengths)


@given(lengths=LENGTHS, limit=LIMITS, seed=st.integers(0, 9))
def test_the_order_depends_only_on_seed_and_epoch(lengths, limit, seed):
    first, second = (PlannedBatches(lengths, limit, seed, epochs=2) for _ in range(2))
    batches_of(first, 0)  # what was read before has no influence
    assert batches_of(first, 1) == batches_of(second, 1)


@given(lengths=LENGTHS, limit=LIMITS)
def test_two_processes_share_the_batches_of_an_epoch(lengths, limit):
    """As accelerate divides them, also where a resumed run skips the first batches. A single example is seen by both."""
    sampler = PlannedBatches(lengths, limit, seed=0, epochs=2, processes=2)
    loader = DataLoader(range(len(lengths)), batch_sampler=sampler, collate_fn=list)
    loaders = [prepare_data_loader(loader, num_processes=2, process_index=i, put_on_device=False) for i in range(2)]
    shares = [list(own) for own in loaders]
    assert len(shares[0]) == len(shares[1]) == len(loaders[0]) == -(-len(sampler) // 2)
    rows = sorted(row for share in shares for batch in share for row in batch)
    assert rows == list(range(len(lengths))) or len(sampler) == len(lengths)
    assert list(skip_first_batches(loaders[1], 1)) == shares[1][1:]


def test_epochs_and_seeds_differ():
    lengths = [20 + row for row in range(50)]
    limit = Limit(tokens=200, packed=True)
    plans = [plan(lengths, limit, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert plans[0] != plans[1] and plans[0] != plans[2]


def test_packed_batches_are_almost_full():
    """Of a mixture of short and long examples, a window leaves its last batches empty, the others hardly."""
    lengths = [50 + 37 * row % 450 for row in range(2 * WINDOW)]
    batches = plan(lengths, Limit(tokens=2048, packed=True), seed=0, epoch=0)
    assert sum(lengths) / (2048 * len(batches)) > 0.98


def test_padded_batches_hold_examples_of_similar_length():
    lengths = [50 + 37 * row % 450 for row in range(WINDOW)]
    by_chance = padding_share(random_batches(len(lengths), 8, seed=0), lengths)
    assert by_chance > 0.3
    for limit in (Limit(examples=8), Limit(tokens=2048)):
        assert padding_share(plan(lengths, limit, seed=0, epoch=0), lengths) < 0.05


def test_groups_of_examples_are_whole_but_for_the_last():
    sizes = sorted(map(len, plan([7] * (2 * WINDOW + 5), Limit(examples=6), seed=0, epoch=0)))
    assert len(sizes) == -(-(2 * WINDOW + 5) // 6) and set(sizes[1:]) == {6}


def test_the_padding_share_is_that_of_the_positions():
    assert padding_share([[0, 1], [2]], [4, 1, 7]) == pytest.approx(3 / 15)
    assert padding_share([[0], [1]], [4, 1]) == 0
