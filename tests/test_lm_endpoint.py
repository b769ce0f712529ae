"""A model behind an address, which is a stand-in on this machine, and its rephrases."""

import json
import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lmdyn.lm import ProbeSet
from lmdyn.lm.endpoint import (
    INSTRUCTIONS,
    MADE,
    Endpoint,
    EndpointError,
    EndpointNonsense,
    rephrase,
)
from lmdyn.lm.judge import EndpointJudge, compare

KEY = "sk-stand-in-0123456789"
ROWS = [
    {"prompt": "where is it", "chosen": " it is there", "rejected": " no"},
    {"prompt": "who is he", "chosen": "he is one of them"},
    {"prompt": "was he there", "chosen": "he was", "rejected": "no"},
]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers, body))
        answer = self.server.respond(body["messages"][0]["content"])
        if answer is None:  # hang up
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


@contextmanager
def stand_in(respond):
    """A server that answers as told, and keeps what it was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.respond, server.requests = respond, []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def says(text, **choice):
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}, **choice}]})


def in_turn(*answers):
    """Give these answers one after the other, the last one for ever."""
    left = list(answers)
    return lambda text: left.pop(0) if len(left) > 1 else left[0]


def until(n, after):
    """Rephrase n times, then answer otherwise."""
    left = iter(range(n))
    return lambda text: says(reworded(text)) if next(left, None) is not None else after


def reworded(request):
    (keeps,) = [name for name, text in INSTRUCTIONS.items() if request.startswith(text)]
    return f"{keeps} of {request.split('<text>')[1].split('</text>')[0].strip()}"


class Writer:
    """Puts a word before the text; counts, and fails where told to."""

    def __init__(self, name="writer", fail_at=None):
        self.description, self.seen, self.fail_at = {"name": name}, [], fail_at

    def __call__(self, request):
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append(request)
        return reworded(request)


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


# --- the address ---------------------------------------------------------------------------------


def test_a_text_goes_there_and_a_text_comes_back(monkeypatch):
    with stand_in(in_turn(says("here"))) as server:
        assert Endpoint("some-model", server.url, options={"top_k": 3})("where?") == "here"
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.delenv("OPENAI_API_KEY")
        assert Endpoint("m", key_env=None)("where?") == "here"
    (path, headers, body), (_, without, _) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}" and "Authorization" not in without
    question = [{"role": "user", "content": "where?"}]
    assert body == {"model": "some-model", "messages": question, "top_k": 3}


def test_a_failing_or_busy_server_is_asked_again():
    soon = {"retry-after-ms": "1"}
    with stand_in(in_turn((500, soon, "oops"), (429, soon, ""), says("here"))) as server:
        assert Endpoint("m", server.url)("where?") == "here"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, {}, "oops"), "HTTP 500, oops"),
        ((401, {}, json.dumps({"error": {"message": f"no: {KEY}"}})), r"HTTP 401, .*no: \[key\]"),
        ((429, {"Retry-After": "3600"}, "quota"), "HTTP 429, quota"),
        (None, "disconnected"),
    ],
)
def test_a_server_that_gives_no_answer_costs_one_line_and_no_work(answer, message, tmp_path):
    out = tmp_path / "out.jsonl"
    with stand_in(until(3, answer)) as server:
        with pytest.raises(EndpointError, match=message) as caught:
            rephrase(ROWS, Endpoint("m", server.url, max_retries=0), out=out)
    error = str(caught.value)
    assert error.startswith(f"rows[0], 'reject_gptformat': {server.url} gave no answer (")
    assert error.endswith(f"(3 answers are there: {out} has them)")
    assert len(server.requests) == 4 and KEY not in error and "\n" not in error
    with stand_in(until(9, None)) as server:  # at another port: the same writer all the same
        assert rephrase(ROWS, Endpoint("m", server.url), out=out).rows == expected()
        assert len(server.requests) == 5
        with pytest.raises(ValueError, match=r"out\.jsonl holds no answers of this model"):
            rephrase(ROWS, Endpoint("n", server.url), out=out)


def test_a_redirection_takes_neither_key_nor_text_anywhere():
    with stand_in(in_turn(says("hi"))) as elsewhere:
        away = (307, {"Location": elsewhere.url + "/chat/completions"}, "")
        with stand_in(in_turn(away)) as server, pytest.raises(EndpointError, match="HTTP 307"):
            Endpoint("m", server.url)("where?")
    assert not elsewhere.requests


def test_a_slow_server_and_none_at_all():
    over = threading.Event()
    with stand_in(lambda text: over.wait(5) and None) as server:
        writer = Endpoint("m", server.url, timeout=0.05, max_retries=0)
        with pytest.raises(EndpointError, match=r"\(timed out\): check url, key, model and t"):
            writer("where?")
        over.set()
    with pytest.raises(EndpointError, match=r"refused"):
        writer("where?")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (says(""), "sent no text"),
        (says(None), "sent no text"),
        ((200, {}, "<html>hello</html>"), "sent no text: '<html>hello</html>'"),
        ((200, {}, "[]"), "sent no text"),
        ((200, {}, '{"choices": []}'), "sent no text"),
        (says("and so\non", finish_reason="length"), "cuts the answer: 'and so on'"),
        (says("It is\n THERE"), r"gave no other text but 'It is\\n THERE'"),
        (says("blah " * 1000, finish_reason="length"), "'(blah ){40}'"),
    ],
)
def test_nonsense_is_asked_again_then_shown_or_skipped(bad, message, tmp_path):
    types = ["chosen_gptsemantic"]
    with stand_in(in_turn(bad, bad, says("<text>here</text>"), bad)) as server:
        writer = Endpoint("m", server.url)
        assert rephrase(ROWS[:1], writer, types)[0]["chosen_gptsemantic"] == " here"
        with pytest.raises(EndpointNonsense, match=rf"rows\[0\], .*{message}.*pass out to keep"):
            rephrase(ROWS[:1], writer, types)
        assert len(server.requests) == 6
        left = rephrase(ROWS[:1], writer, types, out=tmp_path / "a", skip_nonsense=True)
    assert left.rows == tuple(ROWS[:1]) and left.types == ("chosen", "rejected")


def test_the_key_is_in_the_header_alone(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    answers = in_turn(says(f"the key is {KEY}"), (401, {}, f"no: {KEY}"))
    with stand_in(answers) as server:
        writer = Endpoint("m", server.url)
        with pytest.raises(EndpointError) as caught:
            rephrase(ROWS, writer, out=tmp_path / "out.jsonl")
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.requests)
    file = (tmp_path / "out.jsonl").read_text()
    assert "the key is [key]" in file
    shown = [file, caplog.text, repr(writer), str(vars(writer)), str(caught.value)]
    assert caught.value.__suppress_context__ and not [text for text in shown if KEY in text]


@pytest.mark.parametrize("key", [None, " \n", "sk-two\nlines", "sk-ключ"])
def test_a_key_that_cannot_be_used_is_named_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key) if key else monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ValueError, match="SOME_KEY holds no key") as caught:
        EndpointJudge("m", "http://127.0.0.1:1/v1", key_env="SOME_KEY")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    "url", [None, "127.0.0.1:8080/v1", "https:///v1", "https://me:secret@host/v1", "http://h?key=s"]
)
def test_an_address_that_cannot_be_used_is_named(url):
    with pytest.raises(ValueError, match="OPENAI_BASE_URL") as caught:
        Endpoint("m", url)
    assert "secret" not in str(caught.value)


def test_an_endpoint_judges_in_both_orders():
    def longer(text):
        first, second = (
            text.split(f"<{k}>\n")[1].split(f"\n</{k}>")[0] for k in ("first", "second")
        )
        return says(" **First**.\n" if len(first) > len(second) else '"second"')

    with stand_in(longer) as server:
        judge = EndpointJudge("some-model", server.url)
        assert compare(judge, ["p", "q"], ["a", "longer"], ["long", "b"]).outcomes == ("b", "a")
        server.respond = in_turn(says("The second answer is better."))
        with pytest.raises(EndpointNonsense, match=r"prompts\[0\]: .*not 'the second answer is b"):
            compare(judge, ["p"], ["a"], ["b"])
    bodies = [body for *_, body in server.requests]
    assert len(bodies) == 4 + 3 and all(body["temperature"] == 0 for body in bodies)
    one, other = (body["messages"][0]["content"] for body in bodies[:2])
    assert "<first>\na\n" in one and "<second>\nlong\n" in one
    swapped = one.replace("<first>\na\n", "<first>\nlong\n")
    assert other == swapped.replace("<second>\nlong\n", "<second>\na\n")


# --- rephrases -----------------------------------------------------------------------------------


def test_rows_get_what_they_lack_with_the_white_space_of_the_original():
    writer = Writer()
    probes = rephrase(ROWS, writer)
    assert probes.rows == expected()
    chosen, rejected = ("chosen_gptsemantic", "chosen_gptformat"), list(MADE)[2:4]
    assert probes.types == ("chosen", *chosen, "rejected", *rejected)
    assert len(writer.seen) == len(set(writer.seen)) == 8  # "no" is asked for once
    assert not [request for request in writer.seen if "where" in request or "who" in request]
    assert rephrase(probes, Writer(fail_at=0)) == probes  # nothing is left to ask for


def test_only_the_types_that_are_wanted_are_made():
    probes = rephrase(ROWS, Writer(), ["chosen_selfr"])
    assert probes.types == ("chosen", "chosen_selfr", "rejected")
    assert probes[1]["chosen_selfr"] == "meaning of he is one of them"
    assert rephrase(ROWS[1:2], Writer(), "reject_gptformat").types == ("chosen",)
    with pytest.raises(ValueError, match="unknown rephrase 'gptsemantic': did you mean"):
        rephrase(ROWS, Writer(), ["gptsemantic"])


def test_before_a_probe_set_is_made_of_a_dataset_and_after():
    before = ProbeSet.from_dataset(rephrase(ROWS, Writer()))
    after = rephrase(ProbeSet.from_dataset(ROWS), Writer())
    assert before.types == after.types and before.rows == after.rows
    assert "irr_train" in after.types and "reject_gptformat" in after.types


def test_an_interrupted_call_goes_on_where_it_was(tmp_path):
    out, whole = tmp_path / "new" / "out.jsonl", tmp_path / "whole.jsonl"
    done = rephrase(ROWS, Writer(), out=whole)
    first = Writer(fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        rephrase(ROWS, first, out=out)
    assert len(out.read_text().splitlines()) == 1 + 3  # each is there before the next is asked for
    second = Writer()
    assert rephrase(ROWS, second, out=out) == done
    assert len(second.seen) == 5 and not {*first.seen} & {*second.seen}
    assert out.read_bytes() == whole.read_bytes()
    more = [*ROWS[::-1], {"prompt": "a", "chosen": "one more"}]  # the file serves other rows too
    third = Writer()
    assert rephrase(more, third, out=out).rows == expected(more) and len(third.seen) == 2


def test_a_file_torn_anywhere_is_mended(tmp_path):
    out = tmp_path / "out.jsonl"
    done = rephrase(ROWS[1:2], Writer(), out=out)
    whole = out.read_bytes()
    header = whole.index(b"\n")
    for size in [0, 1, header, *range(header + 1, len(whole), 7), len(whole) - 1]:
        out.write_bytes(whole[:size])
        writer = Writer()
        assert rephrase(ROWS[1:2], writer, out=out) == done
        assert len(writer.seen) == 2 - max(0, whole[:size].count(b"\n") - 1)
        assert out.read_bytes() == whole


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    rephrase(ROWS, Writer(), out=out)
    before = out.read_bytes()
    for content, writer in [(before, Writer("other")), (b"my notes\n", Writer()), (b"x", Writer())]:
        out.write_bytes(content)
        with pytest.raises(ValueError, match=r"out\.jsonl holds no answers of this model"):
            rephrase(ROWS, writer, out=out)
        assert out.read_bytes() == content
    out.write_bytes(before)
    monkeypatch.setitem(INSTRUCTIONS, "form", "Rewrite.")
    with pytest.raises(ValueError, match="holds no answers"):
        rephrase(ROWS, Writer(), out=out)
    with pytest.raises(ValueError, match="out must tell who answered"):
        rephrase(ROWS, reworded, out=tmp_path / "new.jsonl")


@pytest.mark.parametrize("line", ["{", "[]", '{"asked": ["a"]}', '{"asked": [[]], "answer": ""}'])
def test_a_line_that_is_no_answer_is_named(tmp_path, line):
    out = tmp_path / "out.jsonl"
    rephrase(ROWS, Writer(), out=out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:2], line + "\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"out\.jsonl, line 3 is no answer: delete it"):
        rephrase(ROWS, Writer(), out=out)


def test_a_folder_that_cannot_be_is_found_out_before_anything_is_asked(tmp_path):
    (tmp_path / "file").write_text("")
    writer = Writer()
    with pytest.raises(OSError, match="file"):
        rephrase(ROWS, writer, out=tmp_path / "file" / "out.jsonl")
    assert not writer.seen
