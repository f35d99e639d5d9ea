"""Batches: who shares one, how long anybody waits, and that one defect ends nothing."""

import asyncio
import threading

import pytest

from recbole_llm.serving.batcher import Batcher, FullError


def run(work, questions, *, window=0.05, max_batch=4, max_waiting=100):
    """The answers or errors, all asked at once."""

    async def all_at_once():
        async with Batcher(work, window, max_batch, max_waiting) as batcher:
            asked = [batcher.ask(question) for question in questions]
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)

    return asyncio.run(all_at_once())


def test_each_gets_its_own_answer_in_batches_that_are_full():
    batches = []

    def work(questions):
        batches.append(list(questions))
        return [question * question for question in questions]

    assert run(work, range(10)) == [number**2 for number in range(10)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [number for batch in batches for number in batch] == list(range(10))


def test_a_full_batch_does_not_wait_for_the_window():
    assert run(lambda questions: questions, range(4), window=3600) == [0, 1, 2, 3]


def test_what_comes_later_in_the_window_shares_the_batch():
    batches = []

    async def one_after_the_other():
        async with Batcher(lambda asked: batches.append(asked) or asked, 3600, 3, 10) as batcher:
            first = asyncio.ensure_future(batcher.ask("a"))
            await asyncio.sleep(0.01)
            assert (batcher.waiting, batches) == (1, [])
            return await asyncio.wait_for(asyncio.gather(first, batcher.ask("b"), batcher.ask("c")), 20)

    assert asyncio.run(one_after_the_other()) == ["a", "b", "c"]
    assert batches == [["a", "b", "c"]]


def test_without_a_window_what_waits_is_taken():
    assert run(lambda questions: questions, range(3), window=0) == [0, 1, 2]


def test_what_comes_while_the_model_works_is_the_next_batch():
    begun, go, batches = threading.Event(), threading.Event(), []

    def work(questions):
        batches.append(questions)
        begun.set()
        assert go.wait(20)
        return questions

    async def during_the_work():
        async with Batcher(work, 0.0, 64, 100) as batcher:
            first = asyncio.ensure_future(batcher.ask(0))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            later = [asyncio.ensure_future(batcher.ask(number)) for number in (1, 2, 3)]
            await asyncio.sleep(0)
            go.set()
            return await asyncio.wait_for(asyncio.gather(first, *later), 20)

    assert asyncio.run(during_the_work()) == [0, 1, 2, 3]
    assert batches == [[0], [1, 2, 3]]


def test_errors_reach_those_who_asked_and_no_others():
    def work(questions):
        if "defect" in questions:
            raise RuntimeError("a defect")
        return [ValueError(question) if question == "bad" else question for question in questions]

    found = run(work, ["a", "bad", "c", "d", "defect", "f", "g", "h", "i"])
    assert [str(answer) for answer in found] == ["a", "bad", "c", "d", *["a defect"] * 4, "i"]
    assert [type(answer) for answer in found] == [str, ValueError, str, str, *[RuntimeError] * 4, str]


def test_more_than_may_wait_are_refused():
    found = run(lambda questions: questions, range(5), window=0.01, max_batch=2, max_waiting=3)
    assert found[:3] == [0, 1, 2]
    assert [type(answer) for answer in found[3:]] == [FullError, FullError]


def test_who_has_gone_is_not_worked_for():
    batches = []

    async def one_goes():
        async with Batcher(lambda asked: batches.append(asked) or asked, 3600, 3, 10) as batcher:
            gone, stays = asyncio.ensure_future(batcher.ask("gone")), asyncio.ensure_future(batcher.ask("stays"))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            third = await asyncio.wait_for(batcher.ask("third"), 20)
            return third, await stays

    assert asyncio.run(one_goes()) == ("third", "stays")
    assert batches == [["stays", "third"]]


def test_it_is_alive_while_it_is_entered():
    async def inside_and_outside():
        batcher = Batcher(list, 0.0, 1, 1)
        before = batcher.alive
        async with batcher:
            during = batcher.alive
        return before, during, batcher.alive

    assert asyncio.run(inside_and_outside()) == (False, True, False)


@pytest.mark.parametrize("count", [200])
def test_many_rounds_lose_none(count):
    async def rounds():
        async with Batcher(lambda asked: [-number for number in asked], 0.0005, 7, 1000) as batcher:

            async def client(number):
                return [await batcher.ask(number * 10 + turn) for turn in range(10)]

            return await asyncio.wait_for(asyncio.gather(*map(client, range(count))), 60)

    assert asyncio.run(rounds()) == [[-(n * 10 + turn) for turn in range(10)] for n in range(count)]
