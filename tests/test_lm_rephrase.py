"""Rephrases by a model behind an endpoint, which is a stand-in on this machine."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_in import KEY, in_turn, says, stand_in
from tiny import tiny_tokenizer

from lmdyn.lm import ProbeSet, _endpoint
from lmdyn.lm.rephrase import (
    INSTRUCTIONS,
    MADE,
    Endpoint,
    EndpointNonsense,
    EndpointRefused,
    EndpointTimeout,
    EndpointUnreachable,
    rephrase,
)

ROWS = [
    {"prompt": "where is it", "chosen": " it is there", "rejected": " no"},
    {"prompt": "who is he", "chosen": "he is one of them"},
    {"prompt": "was he there", "chosen": "he was", "rejected": "no"},
]


class Writer:
    """Puts a word before the text; counts, and fails where told to."""

    def __init__(self, name="writer", fail_at=None):
        self.description = {"name": name}
        self.seen, self.fail_at = [], fail_at

    def __call__(self, request):
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append(request)
        return answer(request)


def answer(request):
    (keeps,) = [name for name, text in INSTRUCTIONS.items() if request.startswith(text)]
    return f"{keeps} of {request.split('<text>')[1].split('</text>')[0].strip()}"


def answers(server, body):
    return says(answer(body["messages"][0]["content"]))


def expected(rows=ROWS):
    made = []
    for row in rows:
        new = dict(row)
        for name, (source, keeps) in MADE.items():
            if source in row and name != "chosen_selfr":
                lead = " " if row[source].startswith(" ") else ""
                new[name] = f"{lead}{keeps} of {row[source].strip()}"
        made.append(new)
    return tuple(made)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def naps(monkeypatch):
    """How long the endpoint would have waited each time."""
    naps = []
    monkeypatch.setattr(_endpoint, "time", SimpleNamespace(sleep=naps.append))
    return naps


# --- rows ----------------------------------------------------------------------------------------


def test_rows_get_what_they_lack_with_the_white_space_of_the_original():
    writer = Writer()
    probes = rephrase(ROWS, writer)
    assert probes.rows == expected()
    assert probes.types == (
        "chosen",
        "chosen_gptsemantic",
        "chosen_gptformat",
        "rejected",
        "reject_gptsemantic",
        "reject_gptformat",
    )
    assert len(writer.seen) == len(set(writer.seen)) == 8  # "no" is asked for once
    assert not [request for request in writer.seen if "where" in request or "who" in request]
    assert rephrase(probes, Writer(fail_at=0)) == probes  # nothing is left to ask for


def test_only_the_types_that_are_wanted_are_made():
    writer = Writer()
    probes = rephrase(ROWS, writer, ["chosen_selfr"])
    assert probes.types == ("chosen", "chosen_selfr", "rejected")
    assert probes[1]["chosen_selfr"] == "meaning of he is one of them"
    assert len(writer.seen) == 3
    assert rephrase(ROWS[1:2], Writer(), "reject_gptformat").types == ("chosen",)
    with pytest.raises(ValueError, match="unknown rephrase 'gptsemantic': did you mean"):
        rephrase(ROWS, writer, ["gptsemantic"])


def test_before_a_probe_set_is_made_of_a_dataset_and_after():
    before = ProbeSet.from_dataset(rephrase(ROWS, Writer()))
    after = rephrase(ProbeSet.from_dataset(ROWS), Writer())
    assert before.types == after.types and before.rows == after.rows
    assert "irr_train" in after.types and "reject_gptformat" in after.types


def test_a_conversation_is_rephrased_without_the_words_of_its_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    turns = [("user", "where is it"), ("assistant", "it is there")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    writer = Writer()
    probes = rephrase(ProbeSet.from_dataset([row], tokenizer), writer, ["chosen_gptsemantic"])
    assert probes[0]["chosen_gptsemantic"] == "meaning of it is there"
    assert "assistant" not in writer.seen[0]
    with pytest.raises(ValueError, match=r"rows\[0\].*pass what it makes"):
        rephrase([row], writer, ["chosen_gptsemantic"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "gave no text but ''"),
        (" <text>\n</text> ", "gave no text but '<text> </text>'"),
        ("It is\n THERE", "gave the text itself: 'It is THERE'"),
        (None, "gave no text but NoneType"),
    ],
)
def test_what_is_no_rephrase_is_asked_again_then_named(bad, message):
    replies = iter([bad, bad, "<text>over here</text>", *[bad] * 6, "form of it"])
    probes = rephrase(ROWS[:1], lambda request: next(replies), ["chosen_gptsemantic"])
    assert probes[0]["chosen_gptsemantic"] == " over here"
    types = ["chosen_gptsemantic", "chosen_gptformat"]
    with pytest.raises(EndpointNonsense, match=message) as caught:
        rephrase(ROWS[:1], lambda request: next(replies), types)
    assert str(caught.value).startswith("rows[0], 'chosen_gptsemantic': the writer gave")
    assert str(caught.value).endswith("0 of 2 rephrases are finished; pass out to keep them")
    probes = rephrase(ROWS[:1], lambda request: next(replies), types, skip_nonsense=True)
    assert probes.types == ("chosen", "chosen_gptformat", "rejected")


# --- the file ------------------------------------------------------------------------------------


def test_an_interrupted_call_goes_on_where_it_was(tmp_path):
    out, whole = tmp_path / "new" / "out.jsonl", tmp_path / "whole.jsonl"
    done = rephrase(ROWS, Writer(), out=whole)
    first = Writer(fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        rephrase(ROWS, first, out=out)
    assert len(out.read_text().splitlines()) == 1 + 3
    second = Writer()
    assert rephrase(ROWS, second, out=out) == done
    assert len(second.seen) == 5 and not {*first.seen} & {*second.seen}
    assert out.read_bytes() == whole.read_bytes()
    more = [*ROWS[::-1], {"prompt": "a", "chosen": "one more"}]  # the file serves other rows too
    third = Writer()
    assert rephrase(more, third, out=out).rows == expected(more)
    assert len(third.seen) == 2


def test_each_rephrase_is_on_disk_before_the_next_is_asked_for(tmp_path):
    out = tmp_path / "out.jsonl"
    lines = []

    def writer(request):
        lines.append(out.read_text().count("\n"))
        return answer(request)

    writer.description = {}
    rephrase(ROWS, writer, out=out)
    assert lines == list(range(1, 9))


def test_a_file_cut_anywhere_is_mended(tmp_path):
    out = tmp_path / "out.jsonl"
    done = rephrase(ROWS[1:2], Writer(), out=out)
    whole = out.read_bytes()
    header = whole.index(b"\n")
    for size in [0, 1, header, *range(header + 1, len(whole))]:
        out.write_bytes(whole[:size])
        writer = Writer()
        assert rephrase(ROWS[1:2], writer, out=out) == done
        assert len(writer.seen) == 2 - max(0, whole[:size].count(b"\n") - 1)
        assert out.read_bytes() == whole


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    rephrase(ROWS, Writer(), out=out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"out\.jsonl holds rephrases by another writer: pass"):
        rephrase(ROWS, Writer("other"), out=out)
    monkeypatch.setitem(INSTRUCTIONS, "form", "Rewrite.")
    with pytest.raises(ValueError, match="that were asked for with other instructions: pass"):
        rephrase(ROWS, Writer(), out=out)
    assert out.read_bytes() == before
    out.write_text("my notes\n")
    with pytest.raises(ValueError, match="something else than rephrases"):
        rephrase(ROWS, Writer(), out=out)
    assert out.read_text() == "my notes\n"
    with pytest.raises(ValueError, match="the writer has no description"):
        rephrase(ROWS, answer, out=tmp_path / "new.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"type": "chosen_gptformat"}',
        '{"type": "irr_hum", "of": "a", "text": "b"}',
        '{"type": "chosen_gptformat", "of": "a", "text": 3}',
        '{"type": [], "of": "a", "text": "b"}',
    ],
)
def test_a_line_that_is_no_rephrase_is_named(tmp_path, line):
    out = tmp_path / "out.jsonl"
    rephrase(ROWS, Writer(), out=out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:2], line + "\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"out\.jsonl, line 3 is no rephrase: .*delete that line"):
        rephrase(ROWS, Writer(), out=out)


def test_a_full_disk_is_named_and_keeps_what_is_there(tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    writer = Writer()
    written = Path.open

    def full(path, mode="r", *args, **kwargs):
        if mode == "ab" and len(writer.seen) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"No space left on device; make room.*out\.jsonl") as caught:
        rephrase(ROWS, writer, out=out)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    again = Writer()
    assert rephrase(ROWS, again, out=out).rows == expected() and len(again.seen) == 6


def test_a_folder_that_cannot_be_is_found_out_before_anything_is_asked(tmp_path):
    (tmp_path / "file").write_text("")
    writer = Writer()
    with pytest.raises(OSError, match="file"):
        rephrase(ROWS, writer, out=tmp_path / "file" / "out.jsonl")
    assert not writer.seen


# --- the endpoint --------------------------------------------------------------------------------


def test_an_endpoint_writes_as_a_writer_in_the_same_process(tmp_path):
    with stand_in(answers) as server:
        writer = Endpoint("some-model", server.url, options={"temperature": 1})
        assert rephrase(ROWS, writer, out=tmp_path / "out.jsonl").rows == expected()
    here = Writer()
    rephrase(ROWS, here)
    asked = []
    for path, headers, body in server.requests:
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert body["model"] == "some-model" and body["temperature"] == 1
        asked += [message["content"] for message in body["messages"]]
    assert asked == here.seen
    assert Endpoint("m", server.url).description["options"] == {}


def cut(text):
    choice = {"message": {"content": text}, "finish_reason": "length"}
    return 200, {}, json.dumps({"choices": [choice]})


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (says(""), "the reply is empty"),
        (says(None), "no chat completion"),
        ((200, {}, "<html>hello</html>"), "no chat completion but '<html>hello</html>'"),
        (cut("and so on and"), "cut at the limit of its tokens: 'and so on and'; raise the limit"),
        (says(f"the key is {KEY}"), r"sent the key back: .*\[key\]"),
    ],
)
def test_nonsense_of_the_endpoint_is_asked_again_then_shown(bad, shown, naps, tmp_path):
    with stand_in(in_turn(bad, says("here"))) as server:
        assert Endpoint("m", server.url)("where?") == "here"
    out = tmp_path / "out.jsonl"
    with stand_in(in_turn(bad)) as server:
        writer = Endpoint("m", server.url, retries=2)
        with pytest.raises(EndpointNonsense, match=rf"rows\[0\], .*{shown}") as caught:
            rephrase(ROWS, writer, out=out)
        assert len(server.requests) == 3 and naps == [0, 0, 0]
        assert KEY not in str(caught.value) and "\n" not in str(caught.value)
        left = rephrase(ROWS[:1], writer, out=out, skip_nonsense=True)
    assert left.rows == tuple(ROWS[:1]) and left.types == ("chosen", "rejected")
    assert KEY not in out.read_text() + str(vars(writer)) + repr(writer)


def test_a_failing_or_busy_server_is_asked_again_after_a_pause(naps):
    busy = (429, {"Retry-After": "7"}, "")
    with stand_in(in_turn((500, {}, "oops"), None, busy, says("here"))) as server:
        assert Endpoint("m", server.url)("where?") == "here"
    assert naps == [1, 2, 7]


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((401, {}, f"no: {KEY}"), r"HTTP 401, 'no: \[key\]': set OPENAI_API_KEY to a key"),
        ((429, {"Retry-After": "3600"}, "quota"), r"HTTP 429, 'quota'.*3600 s of pause"),
        ((307, {"Location": "http://127.0.0.1:9/v1"}, ""), "HTTP 307"),
    ],
)
def test_a_refusal_ends_it_at_once_and_loses_nothing(refusal, message, naps, tmp_path):
    def tires(server, body):
        return answers(server, body) if len(server.requests) <= 3 else refusal

    out = tmp_path / "out.jsonl"
    with stand_in(tires) as server:
        with pytest.raises(EndpointRefused, match=message) as caught:
            rephrase(ROWS, Endpoint("m", server.url), out=out)
    assert len(server.requests) == 4 and not naps
    assert caught.value.finished == 3 and caught.value.status == refusal[0]
    assert "3 of 8 rephrases are finished" in str(caught.value) and KEY not in str(caught.value)
    assert str(caught.value).endswith(f"{out} has them: the same call goes on")
    with stand_in(answers) as server:  # at another port: the same writer all the same
        assert rephrase(ROWS, Endpoint("m", server.url), out=out).rows == expected()
    assert len(server.requests) == 5


def test_a_slow_server_and_none_at_all(naps):
    with stand_in(lambda server, body: server.closing.wait(5) and None) as server:
        writer = Endpoint("m", server.url, timeout=0.05, retries=1)
        with pytest.raises(EndpointTimeout, match=r"rows\[0\].* did not answer in 0.05 s: pass a"):
            rephrase(ROWS, writer)
        assert len(server.requests) == 2 and naps == [1]
    with pytest.raises(EndpointUnreachable, match=r"rows\[0\].* no connection to .*check url"):
        rephrase(ROWS, writer)


def test_a_server_that_dies_midway_loses_nothing(tmp_path, naps):
    out = tmp_path / "out.jsonl"

    def dies(server, body):
        return answers(server, body) if len(server.requests) <= 2 else None

    with stand_in(dies) as server, pytest.raises(EndpointUnreachable, match="2 of 8 rephrases"):
        rephrase(ROWS, Endpoint("m", server.url), out=out)
    with stand_in(answers) as server:
        assert rephrase(ROWS, Endpoint("m", server.url), out=out).rows == expected()
        assert len(server.requests) == 6
        with pytest.raises(ValueError, match="rephrases by another writer"):
            rephrase(ROWS, Endpoint("n", server.url), out=out)
