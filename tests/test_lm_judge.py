"""Judges and win rates; the endpoint is a stand-in on this machine."""

import json
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from scipy.stats import binomtest
from stand_in import KEY, in_turn, says, stand_in

from lmdyn.lm import _endpoint, world
from lmdyn.lm.judge import (
    Comparison,
    EndpointJudge,
    JudgeNonsense,
    JudgeRefused,
    JudgeTimeout,
    JudgeUnreachable,
    TruthJudge,
    compare,
)

PROMPTS = [f"prompt {i}" for i in range(6)]
A = ["long answer", "ok", "a longer one", "fine", "same", "yes indeed"]
B = ["short", "much longer", "mid", "nice", "same", "no"]


class Longer:
    """Prefers the longer answer; counts, and fails where told to."""

    def __init__(self, name="longer", fail_at=None, error=KeyboardInterrupt):
        self.description = {"name": name}
        self.seen, self.fail_at, self.error = [], fail_at, error

    def __call__(self, prompt, first, second):
        if len(self.seen) == self.fail_at:
            raise self.error("stop")
        self.seen.append((prompt, first, second))
        difference = len(first) - len(second)
        return "tie" if not difference else "first" if difference > 0 else "second"


# --- win rates -----------------------------------------------------------------------------------


def test_each_pair_is_asked_in_both_orders_and_equal_answers_never():
    judge = Longer()
    result = compare(judge, PROMPTS, A, B)
    pairs = [(p, a, b) for p, a, b in zip(PROMPTS, A, B, strict=True) if a != b]
    assert sorted(judge.seen) == sorted(pairs + [(p, b, a) for p, a, b in pairs])
    assert result.outcomes == ("a", "b", "a", "tie", "tie", "a")
    assert (result.wins, result.ties, result.losses, result.n) == (3, 2, 1, 6)
    assert result.win_rate == pytest.approx(4 / 6)
    assert result.consistency == 1 and result.first_share == 0.5


def test_a_judge_that_always_likes_the_first_place_decides_nothing():
    result = compare(lambda prompt, first, second: "first", PROMPTS, A, B)
    assert result.ties == 6 and result.win_rate == 0.5
    assert result.first_share == 1 and result.consistency == pytest.approx(1 / 6)


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie():
    assert Comparison((("a", "tie"), ("tie", "b"), ("b", "a"))).ties == 3


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (3, 10), (10, 10), (71, 90)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_wilson_s(wins, n, level):
    result = Comparison((("a", "a"),) * wins + (("b", "b"),) * (n - wins))
    expected = binomtest(wins, n).proportion_ci(level, method="wilson")
    assert result.interval(level) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_level_outside_0_1_is_refused():
    with pytest.raises(ValueError, match="level"):
        Comparison((("a", "a"),)).interval(95)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("hi", A, B), "prompts must be a list"),
        (([], [], []), "prompts must be a list"),
        ((PROMPTS, A[:-1], B), "6 prompts and 5 answers a"),
        ((PROMPTS, A, [*B[:-1], None]), r"b\[5\] must be a text, got NoneType"),
    ],
)
def test_bad_texts_are_named(texts, message):
    with pytest.raises(ValueError, match=message):
        compare(Longer(), *texts)


def test_a_verdict_that_is_none_is_refused():
    with pytest.raises(JudgeNonsense, match=r"prompts\[0\].*'maybe'.*0 of 10 .*pass out"):
        compare(lambda *_: "maybe", PROMPTS, A, B)


def test_pairs_without_a_verdict_can_be_left_out(tmp_path):
    def judge(prompt, first, second):
        if prompt == PROMPTS[0] or (prompt == PROMPTS[1] and first == B[1]):
            raise JudgeNonsense("no comment")
        return Longer()(prompt, first, second)

    judge.description = {}
    out = tmp_path / "judged.jsonl"
    with pytest.raises(JudgeNonsense, match=r"prompts\[0\]: no comment"):
        compare(judge, PROMPTS, A, B, out=out)
    for _ in range(2):  # asked again, they are left out again
        result = compare(judge, PROMPTS, A, B, out=out, skip_nonsense=True)
        assert result.outcomes == (None, None, "a", "tie", "tie", "a")
        assert result.n == 4 and result.win_rate == 0.75
    with pytest.raises(JudgeNonsense, match="none of the pairs"):
        compare(judge, PROMPTS[:1], A[:1], B[:1], skip_nonsense=True)


# --- truth ---------------------------------------------------------------------------------------


def test_in_the_world_a_true_answer_beats_any_other():
    rows = world.probes()
    prompts, chosen, reworded, rejected, other = (
        [row[key] for row in rows]
        for key in ("prompt", "chosen", "chosen_gptsemantic", "rejected", "irr_train")
    )
    judge = TruthJudge()
    assert compare(judge, prompts, chosen, rejected).wins == len(rows)
    assert compare(judge, prompts, rejected, chosen).losses == len(rows)
    assert compare(judge, prompts, chosen, reworded).ties == len(rows)  # both true
    assert compare(judge, prompts, rejected, other).ties == len(rows)  # both not
    with pytest.raises(ValueError, match="not a question of the world"):
        judge("what ?", "a", "b")


# --- the file ------------------------------------------------------------------------------------


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path):
    out, whole = tmp_path / "new" / "judged.jsonl", tmp_path / "whole.jsonl"
    expected = compare(Longer(), PROMPTS, A, B, out=whole)
    first = Longer(fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        compare(first, PROMPTS, A, B, out=out)
    assert len(out.read_text().splitlines()) == 1 + 4
    second = Longer()
    assert compare(second, PROMPTS, A, B, out=out) == expected
    assert len(second.seen) == 6 and not {*first.seen} & {*second.seen}
    assert out.read_bytes() == whole.read_bytes()
    third = Longer()
    assert compare(third, PROMPTS, A, B, out=out) == expected and not third.seen


def test_each_judgement_is_on_disk_before_the_next_is_asked(tmp_path):
    out = tmp_path / "judged.jsonl"
    lines = []

    def judge(*_):
        lines.append(out.read_text().count("\n"))
        return "tie"

    judge.description = {}
    compare(judge, PROMPTS, A, B, out=out)
    assert lines == list(range(1, 11))


def test_a_file_cut_anywhere_is_mended(tmp_path):
    out = tmp_path / "judged.jsonl"
    expected = compare(Longer(), PROMPTS[:2], A[:2], B[:2], out=out)
    whole = out.read_bytes()
    for size in range(len(whole)):
        out.write_bytes(whole[:size])
        judge = Longer()
        assert compare(judge, PROMPTS[:2], A[:2], B[:2], out=out) == expected
        assert len(judge.seen) == 4 - max(0, whole[:size].count(b"\n") - 1)
        assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Longer("other"), PROMPTS, A, B), "another judge's verdicts: pass another file"),
        ((Longer(), PROMPTS[::-1], A, B), "verdicts on other prompts:"),
        ((Longer(), PROMPTS, B, A), "verdicts on other answers a, verdicts on other answers b:"),
        ((Longer(), PROMPTS[:5], A[:5], B[:5]), "other prompts, .*other answers a"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, arguments, message):
    out = tmp_path / "judged.jsonl"
    compare(Longer(), PROMPTS, A, B, out=out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=f"judged.jsonl holds .*{message}"):
        compare(*arguments, out=out)
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", ["my notes", "my notes\n", "[]\n", '{"judge": 1}\n', "\n"])
def test_a_file_that_holds_no_judgements_is_refused_and_left_alone(tmp_path, content):
    out = tmp_path / "notes.txt"
    out.write_text(content)
    with pytest.raises(ValueError, match=r"notes.txt holds (something else|another judge)"):
        compare(Longer(), PROMPTS, A, B, out=out)
    assert out.read_text() == content


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"row": 0}',
        '{"row": 6, "shown first": "a", "verdict": "tie"}',
        '{"row": 0, "shown first": "c", "verdict": "tie"}',
        '{"row": 0, "shown first": "a", "verdict": "a"}',
        '{"row": [], "shown first": [], "verdict": []}',
    ],
)
def test_a_line_that_is_no_judgement_is_named(tmp_path, line):
    out = tmp_path / "judged.jsonl"
    compare(Longer(), PROMPTS, A, B, out=out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:3], line + "\n", *lines[4:]]))
    with pytest.raises(ValueError, match="line 4 is no judgement"):
        compare(Longer(), PROMPTS, A, B, out=out)


def test_a_file_needs_a_judge_with_a_description(tmp_path):
    with pytest.raises(ValueError, match="description"):
        compare(lambda *_: "tie", PROMPTS, A, B, out=tmp_path / "judged.jsonl")


# --- the endpoint --------------------------------------------------------------------------------


def longer(server, body):
    text = body["messages"][0]["content"]
    first, second = (text.split(f"<{k}>\n")[1].split(f"\n</{k}>")[0] for k in ("first", "second"))
    return says(Longer()("", first, second))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def naps(monkeypatch):
    """How long the judge would have waited each time."""
    naps = []
    monkeypatch.setattr(_endpoint, "time", SimpleNamespace(sleep=naps.append))
    return naps


def test_an_endpoint_judges_as_a_judge_in_the_same_process(tmp_path):
    with stand_in(longer) as server:
        judge = EndpointJudge("some-model", server.url)
        assert compare(judge, PROMPTS, A, B) == compare(Longer(), PROMPTS, A, B)
    assert len(server.requests) == 10
    for path, headers, body in server.requests:
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert body["model"] == "some-model" and body["temperature"] == 0
    one, other = (body["messages"][0]["content"] for _, _, body in server.requests[:2])
    assert one != other and PROMPTS[0] in one
    swapped = one.replace(A[0], "[a]").replace(B[0], A[0]).replace("[a]", B[0])
    assert other == swapped


def test_the_address_may_come_from_the_environment_and_the_key_need_not_be(monkeypatch):
    with stand_in(in_turn(says("tie"))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
        monkeypatch.delenv("OPENAI_API_KEY")
        judge = EndpointJudge("m", key_env=None, options={"max_completion_tokens": 5})
        assert judge("p", "x", "y") == "tie"
    _, headers, body = server.requests[0]
    assert "Authorization" not in headers
    assert body["max_completion_tokens"] == 5 and "temperature" not in body


@pytest.mark.parametrize("word", ["second", " Second.\n", "**SECOND**", '"second"'])
def test_one_word_is_read_whatever_its_dress(word):
    with stand_in(in_turn(says(word))) as server:
        assert EndpointJudge("m", server.url)("p", "x", "y") == "second"


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (says("The second answer is better."), "'The second answer is better.'"),
        (says("first second"), "'first second'"),
        (says(""), "said ''"),
        (says(None), "no chat completion"),
        ((200, {}, "<html>hello</html>"), "no chat completion but '<html>hello</html>'"),
        ((200, {}, "[]"), "no chat completion"),
        ((200, {}, '{"choices": []}'), "no chat completion"),
        (says("blah " * 1000), "'(blah ){40}…'"),
    ],
)
def test_nonsense_is_asked_again_then_shown(bad, shown, naps):
    with stand_in(in_turn(bad, says("tie"))) as server:
        assert EndpointJudge("m", server.url)("p", "x", "y") == "tie"
    with stand_in(in_turn(bad)) as server:
        judge = EndpointJudge("m", server.url, retries=2)
        with pytest.raises(JudgeNonsense, match=shown) as caught:
            compare(judge, PROMPTS, A, B)
    assert len(server.requests) == 3 and naps == [0, 0, 0]
    assert "prompts[0]" in str(caught.value) and "\n" not in str(caught.value)


def test_a_failing_server_is_asked_again_after_longer_and_longer_pauses(naps):
    with stand_in(in_turn((500, {}, "oops"), None, (503, {}, ""), says("first"))) as server:
        assert EndpointJudge("m", server.url)("p", "x", "y") == "first"
    assert naps == [1, 2, 4]


def test_the_pause_a_server_asks_for_is_kept(naps):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    busy = [(429, {"Retry-After": after}, "") for after in ("7", date, "soon")]
    with stand_in(in_turn(*busy, says("first"))) as server:
        assert EndpointJudge("m", server.url)("p", "x", "y") == "first"
    assert naps[0] == 7 and 25 < naps[1] <= 30 and naps[2] == 4


def test_a_pause_too_long_is_left_to_the_user(naps):
    with stand_in(in_turn((429, {"Retry-After": "3600"}, "quota"))) as server:
        with pytest.raises(JudgeRefused, match=r"429, 'quota'.*3600 s") as caught:
            EndpointJudge("m", server.url)("p", "x", "y")
    assert len(server.requests) == 1 and not naps
    assert (caught.value.status, caught.value.retry_after) == (429, 3600)


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "options"),
        (422, "options"),
        (401, "OPENAI_API_KEY"),
        (403, "OPENAI_API_KEY"),
        (404, "model"),
    ],
)
def test_what_is_not_worth_asking_again_is_refused_at_once(status, hint, naps):
    said = json.dumps({"error": {"message": f"wrong: Bearer {KEY}"}})
    with stand_in(in_turn((status, {}, said))) as server:
        with pytest.raises(JudgeRefused, match=rf"HTTP {status}, .*wrong: .*{hint}") as caught:
            compare(EndpointJudge("m", server.url), PROMPTS, A, B)
    assert len(server.requests) == 1 and not naps
    assert caught.value.status == status and caught.value.finished == 0
    assert KEY not in str(caught.value) and "[key]" in str(caught.value)


def test_a_server_that_wants_a_key_after_all():
    with stand_in(in_turn((401, {}, "no key"))) as server:
        with pytest.raises(JudgeRefused, match="HTTP 401, 'no key': set key_env to a key"):
            EndpointJudge("m", server.url, key_env=None)("p", "x", "y")


def test_a_server_that_keeps_failing_is_given_up(naps):
    with stand_in(in_turn((502, {}, "bad gateway"))) as server:
        with pytest.raises(JudgeRefused, match="HTTP 502, 'bad gateway'"):
            EndpointJudge("m", server.url, retries=2)("p", "x", "y")
    assert len(server.requests) == 3 and naps == [1, 2]


def test_a_redirection_takes_the_key_nowhere():
    with stand_in(in_turn(says("tie"))) as elsewhere:
        away = (307, {"Location": elsewhere.url + "/chat/completions"}, "")
        with stand_in(in_turn(away)) as server, pytest.raises(JudgeRefused, match="HTTP 307"):
            EndpointJudge("m", server.url)("p", "x", "y")
    assert not elsewhere.requests


def test_a_slow_server_times_out(naps):
    def slow(server, body):
        server.closing.wait(5)

    with stand_in(slow) as server:
        judge = EndpointJudge("m", server.url, timeout=0.05, retries=1)
        with pytest.raises(JudgeTimeout, match=r"did not answer in 0.05 s: pass a longer timeout"):
            judge("p", "x", "y")
        assert len(server.requests) == 2 and naps == [1]


def test_no_server_at_all(naps):
    with stand_in(None) as server:
        pass
    with pytest.raises(JudgeUnreachable, match=f"no connection to {server.url}.*check url"):
        EndpointJudge("m", server.url, retries=1)("p", "x", "y")
    assert naps == [1]


def test_a_server_that_dies_midway_loses_nothing(tmp_path, naps):
    out = tmp_path / "judged.jsonl"
    expected = compare(Longer(), PROMPTS, A, B)

    def dies(server, body):
        return longer(server, body) if len(server.requests) <= 3 else None

    with stand_in(dies) as server:
        with pytest.raises(JudgeUnreachable, match=r"3 of 10 .*judged.jsonl has them") as caught:
            compare(EndpointJudge("m", server.url), PROMPTS, A, B, out=out)
    assert caught.value.finished == 3
    with stand_in(longer) as server:  # at another port: the same judge all the same
        assert compare(EndpointJudge("m", server.url), PROMPTS, A, B, out=out) == expected
        assert len(server.requests) == 7
        with pytest.raises(ValueError, match="another judge"):
            compare(EndpointJudge("n", server.url), PROMPTS, A, B, out=out)


def test_the_key_is_in_the_header_alone(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    answers = in_turn(says(f"the key is {KEY}"), says("tie"), (401, {}, f"no: {KEY}"))
    with stand_in(answers) as server:
        judge = EndpointJudge("m", server.url)
        with pytest.raises(JudgeRefused) as caught:
            compare(judge, PROMPTS, A, B, out=tmp_path / "judged.jsonl")
        with pytest.raises(JudgeNonsense) as nonsense:
            answers = in_turn(says(f"the key is {KEY}"))
            server.respond = answers
            EndpointJudge("m", server.url)("p", "x", "y")
    assert caught.value.finished == 1
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.requests)
    files = "".join(path.read_text() for path in tmp_path.rglob("*"))
    shown = [files, caplog.text, repr(judge), str(vars(judge)), str(caught.value)]
    assert not [text for text in [*shown, str(nonsense.value)] if KEY in text]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "set the environment variable OPENAI_API_KEY"),
        (" \n", "set the environment variable OPENAI_API_KEY"),
        ("sk-two\nlines", "OPENAI_API_KEY holds no key"),
        ("sk-ключ", "OPENAI_API_KEY holds no key"),
    ],
)
def test_a_key_that_cannot_be_used_is_named_and_not_shown(monkeypatch, key, message):
    if key is None:
        monkeypatch.delenv("OPENAI_API_KEY")
    else:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match=message) as caught:
        EndpointJudge("m", "http://127.0.0.1:1/v1")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "OPENAI_BASE_URL"),
        ({"url": "127.0.0.1:8080/v1"}, "url must be http"),
        ({"url": "https:///v1"}, "url must be http"),
        ({"url": "https://host:port/v1"}, "url must be http"),
        ({"url": "https://me:secret@host/v1"}, "without password or query$"),
        ({"url": "https://host/v1?key=secret"}, "without password or query$"),
        ({"url": "http://host/v1", "retries": -1}, "retries"),
        ({"url": "http://host/v1", "timeout": 0}, "timeout"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        EndpointJudge("m", **options)
