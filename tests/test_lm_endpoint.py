"""A model behind an address, which is a stand-in on this machine; its rephrases and verdicts."""

import json
import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from scipy.stats import binomtest

from lmdyn.lm import ProbeSet
from lmdyn.lm.endpoint import (
    MADE,
    REQUESTS,
    Comparison,
    Endpoint,
    EndpointError,
    EndpointNonsense,
    compare,
    rephrase,
)

KEY = "sk-stand-in-0123456789"
ROWS = [
    {"prompt": "where is it", "chosen": " it is there", "rejected": " no"},
    {"prompt": "who is he", "chosen": "he is one of them"},
    {"prompt": "was he there", "chosen": "he was", "rejected": "no"},
]
PROMPTS = [f"prompt {i}" for i in range(6)]
A = ["long answer", "ok", "a longer one", "fine", "same", "yes indeed"]
B = ["short", "much longer", "mid", "nice", "same", "no"]


JSON = {"Content-Type": "application/json"}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers, body))
        if answer := self.server.respond(body["messages"][0]["content"]):  # else it hangs up
            status, headers, content = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content.encode())
        self.close_connection = True

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
    return 200, JSON, json.dumps({"choices": [{"message": {"content": text}, **choice}]})


def in_turn(*answers):
    """Give these answers, or what they make of the text, one by one, the last one for ever."""
    left = list(answers)

    def respond(text):
        answer = left.pop(0) if len(left) > 1 else left[0]
        return answer(text) if callable(answer) else answer

    return respond


def reworded(request):
    keeps = "form" if REQUESTS["form"] in request else "meaning"
    return f"{keeps} of {request.split('<text>')[1].split('</text>')[0].strip()}"


def rewords(request):
    return says(reworded(request))


class Counting:
    """Asks a function; counts, and is interrupted where told to be."""

    def __init__(self, function, name="one", fail_at=None):
        self.function, self.fail_at = function, fail_at
        self.description, self.seen = {"name": name}, []

    def __call__(self, *texts):
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append(texts)
        return self.function(*texts)


def longer(prompt, first, second):
    difference = len(first) - len(second)
    return "tie" if not difference else "first" if difference > 0 else "second"


def expected(rows=ROWS):
    made = [dict(row) for row in rows]
    for row in made:
        for name in list(MADE)[: 4 if "rejected" in row else 2]:
            text = row[name[:6].replace("reject", "rejected")]
            lead, keeps = text[: text.startswith(" ")], "form" if "format" in name else "meaning"
            row[name] = f"{lead}{keeps} of {text.strip()}"
    return tuple(made)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


# --- the address ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_text_goes_there_and_a_text_comes_back(monkeypatch):
    soon = {"retry-after-ms": "1"}  # a failing or busy server is asked again
    with stand_in(in_turn((500, soon, "oops"), (429, soon, ""), says("here"))) as server:
        assert Endpoint("some-model", server.url, options={"top_k": 3})("where?") == "here"
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert Endpoint("m", api_key="none")("where?") == "here"
    *_, (path, headers, body), (_, without, _) = server.requests
    assert path == "/v1/chat/completions" and len(server.requests) == 4
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert without["Authorization"] == "Bearer none"
    question = [{"role": "user", "content": "where?"}]
    assert body == {"model": "some-model", "messages": question, "top_k": 3}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, {}, "oops"), "HTTP 500, oops"),
        ((401, JSON, json.dumps({"error": {"message": f"no: {KEY}"}})), r"HTTP 401, .*no: \[key\]"),
        ((429, {"Retry-After": "3600"}, "quota"), "HTTP 429, quota"),
        ((200, JSON, "{"), "Expecting property name"),
        (None, "disconnected"),
    ],
)
def test_a_server_that_gives_no_answer_costs_one_line(answer, message):
    with stand_in(in_turn(answer)) as server, pytest.raises(EndpointError, match=message) as caught:
        Endpoint("m", server.url, max_retries=0)("where?")
    error = str(caught.value)
    assert error.startswith("no answer: ")
    assert error.endswith("(check url, key, model and timeout)")
    assert len(server.requests) == 1 and KEY not in error and "\n" not in error


def test_a_server_that_gives_no_answer_costs_no_work(tmp_path):
    out = tmp_path / "out.jsonl"
    with stand_in(in_turn(rewords, rewords, rewords, (500, {}, "oops"))) as server:
        with pytest.raises(EndpointError, match=r"HTTP 500, oops \(check url") as caught:
            rephrase(ROWS, Endpoint("m", server.url, max_retries=0), out=out)
        assert len(server.requests) == 4
    error = str(caught.value)
    assert error.startswith("rows[0], 'reject_gptformat': no answer: ") and "\n" not in error
    assert error.endswith(f"model and timeout); {out} keeps the 3 answers so far")
    with stand_in(rewords) as server:  # at another port: the same writer all the same
        assert rephrase(ROWS, Endpoint("m", server.url), out=out).rows == expected()
        assert len(server.requests) == 5
        more = [*ROWS[::-1], {"prompt": "a", "chosen": "one more"}]  # the file serves other rows
        assert rephrase(more, Endpoint("m", server.url), out=out).rows == expected(more)
        assert len(server.requests) == 5 + 2


def test_a_redirection_takes_neither_key_nor_text_anywhere():
    with stand_in(in_turn(says("hi"))) as elsewhere:
        away = (307, {"Location": elsewhere.url + "/chat/completions"}, "")
        with stand_in(in_turn(away)) as server, pytest.raises(EndpointError, match="307"):
            Endpoint("m", server.url)("where?")
    assert not elsewhere.requests


def test_a_slow_server_or_none_is_no_answer():
    over = threading.Event()
    with stand_in(lambda text: over.wait(5) and None) as server:
        writer = Endpoint("m", server.url, timeout=0.05, max_retries=0)
        with pytest.raises(EndpointError, match=r"timed out.*check url, key, model and timeout"):
            writer("where?")
        over.set()
    with pytest.raises(EndpointError, match=r"refused"):
        writer("where?")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (says(""), "empty, cut or no text"),
        (says(None), "empty, cut or no text"),
        ((200, {}, "<html>hello</html>"), "no text: <html>hello</html>"),
        ((200, JSON, "[]"), "no text"),
        ((200, JSON, '{"choices": []}'), "no text"),
        ((200, JSON, '{"choices": [{}]}'), "no text"),
        (says("and so\non", finish_reason="length"), r"cut .*and so\\non"),
        (says("It is\n THERE"), r"gave no other text but 'It is\\n THERE'"),
    ],
)
def test_nonsense_is_shown_or_skipped_and_asked_again(bad, message, tmp_path):
    types, out = ["chosen_gptsemantic"], tmp_path / "out.jsonl"
    with stand_in(in_turn(bad, bad, says("<text>here</text>"))) as server:
        writer = Endpoint("m", server.url)
        with pytest.raises(EndpointNonsense, match=rf"rows\[0\], .*{message}.*; pass out to keep"):
            rephrase(ROWS[:1], writer, types)
        left = rephrase(ROWS[:1], writer, types, out=out, skip_nonsense=True)
        assert left.rows == tuple(ROWS[:1]) and left.types == ("chosen", "rejected")
        assert rephrase(ROWS[:1], writer, types, out=out)[0]["chosen_gptsemantic"] == " here"


def test_the_key_is_in_the_header_alone(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with stand_in(in_turn(says("hello"), (401, {}, f"no: {KEY}"))) as server:
        writer = Endpoint("m", server.url, max_retries=0)
        with pytest.raises(EndpointError) as caught:
            rephrase(ROWS, writer, out=tmp_path / "out.jsonl")
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.requests)
    shown = [(tmp_path / "out.jsonl").read_text(), caplog.text, repr(writer), str(vars(writer))]
    assert caught.value.__suppress_context__
    assert not [text for text in (*shown, str(caught.value)) if KEY in text]


def test_an_address_and_a_key_are_asked_for(monkeypatch):
    with pytest.raises(ValueError, match="pass url, or set OPENAI_BASE_URL"):
        Endpoint("m")
    for key in (KEY + "\n", "sk-ключ"):
        with pytest.raises(ValueError, match="one line of ASCII") as caught:
            Endpoint("m", "http://127.0.0.1:1/v1", api_key=key)
        assert "sk-" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    import openai  # takes seconds

    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        Endpoint("m", "http://127.0.0.1:1/v1")


# --- rephrases -----------------------------------------------------------------------------------


def test_rows_get_what_they_lack_with_the_white_space_of_the_original():
    writer = Counting(reworded)
    probes = rephrase(ROWS, writer)
    assert probes.rows == expected()
    chosen, rejected = ("chosen_gptsemantic", "chosen_gptformat"), list(MADE)[2:4]
    assert probes.types == ("chosen", *chosen, "rejected", *rejected)
    assert len(writer.seen) == len(set(writer.seen)) == 8  # "no" is asked for once
    assert not [request for (request,) in writer.seen if "where" in request or "who" in request]
    assert rephrase(probes, Counting(reworded, fail_at=0)) == probes  # nothing is left to ask for


def test_only_the_types_that_are_wanted_are_made():
    probes = rephrase(ROWS, reworded, ["chosen_selfr"])
    assert probes.types == ("chosen", "chosen_selfr", "rejected")
    assert probes[1]["chosen_selfr"] == "meaning of he is one of them"
    assert rephrase(ROWS[1:2], reworded, ["reject_gptformat"]).types == ("chosen",)
    with pytest.raises(ValueError, match="unknown rephrase 'gptsemantic': did you mean"):
        rephrase(ROWS, reworded, ["gptsemantic"])


def test_words_of_a_turn_are_rephrased_and_token_ids_are_not():
    turns = [{"role": "assistant", "content": "it is there"}]
    rows = [
        {"prompt": [{"role": "user", "content": "where?"}], "chosen": turns, "rejected": [3, 4]},
        {"prompt": [{"role": "user", "content": "who?"}], "chosen": turns * 2},
    ]
    probes = rephrase(rows, reworded)
    said = probes[0]["chosen_gptsemantic"]
    assert said == [{"role": "assistant", "content": "meaning of it is there"}]
    assert probes.types == ("chosen", "chosen_gptsemantic", "chosen_gptformat", "rejected")
    assert probes[1] == rows[1]


def test_before_a_probe_set_is_made_of_a_dataset_and_after():
    before = ProbeSet.from_dataset(rephrase(ROWS, reworded))
    after = rephrase(ProbeSet.from_dataset(ROWS), reworded)
    assert before.types == after.types and before.rows == after.rows
    assert "irr_train" in after.types and "reject_gptformat" in after.types


# --- win rates -----------------------------------------------------------------------------------


def test_each_pair_is_asked_in_both_orders_and_equal_answers_never():
    judge = Counting(longer)
    result = compare(judge, PROMPTS, A, B)
    pairs = [(p, a, b) for p, a, b in zip(PROMPTS, A, B, strict=True) if a != b]
    assert sorted(judge.seen) == sorted(pairs + [(p, b, a) for p, a, b in pairs])
    assert result.outcomes == ["a", "b", "a", "tie", "tie", "a"]
    assert (result.wins, result.ties, result.losses, result.n) == (3, 2, 1, 6)
    assert result.win_rate == pytest.approx(4 / 6)
    assert compare(lambda *_: "first", PROMPTS, A, B).ties == 6  # a win in one order alone
    some = PROMPTS[:4], A[:4], B[:4]
    assert compare(lambda p, a, b: "tie" if a in A else "second", *some).ties == 4


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (3, 10), (10, 10), (71, 90)])
def test_the_interval_is_wilson_s(wins, n):
    wilson = binomtest(wins, n).proportion_ci(0.95, method="wilson")
    result = Comparison(["a"] * wins + ["b"] * (n - wins))
    assert result.interval() == pytest.approx(tuple(wilson), abs=1e-12)


def test_no_verdict_is_no_comparison():
    for outcomes in ([], [None, None]):
        with pytest.raises(ValueError, match="a verdict on none of the pairs"):
            Comparison(outcomes)


def test_bad_texts_are_named():
    with pytest.raises(ValueError, match="prompts must be a list"):
        compare(longer, [], [], [])
    with pytest.raises(ValueError, match="a must be 6 texts, got 5"):
        compare(longer, PROMPTS, A[:-1], B)


def test_pairs_without_a_verdict_can_be_left_out(tmp_path):
    def judge(prompt, first, second):
        no = prompt == PROMPTS[0] or (prompt == PROMPTS[1] and first == B[1])
        return "maybe" if no else longer(prompt, first, second)

    with pytest.raises(EndpointNonsense, match=r"prompts\[0\].*'maybe'; pass out to keep"):
        compare(judge, PROMPTS, A, B)
    for _ in range(2):  # asked again, they are left out again
        out = tmp_path / "judged.jsonl"
        result = compare(Counting(judge), PROMPTS, A, B, out=out, skip_nonsense=True)
        assert result.outcomes == [None, None, "a", "tie", "tie", "a"]
        assert result.n == 4 and result.win_rate == 0.75
    with pytest.raises(ValueError, match="none of the pairs"):
        compare(judge, PROMPTS[:1], A[:1], B[:1], skip_nonsense=True)


def test_an_endpoint_judges_in_words_of_its_own():
    def reply(text):
        first, second = (
            text.split(f"<{k}>\n")[1].split(f"\n</{k}>")[0] for k in ("first", "second")
        )
        return says(" **First**.\n" if len(first) > len(second) else '"second"')

    with stand_in(reply) as server:
        judge = Endpoint("m", server.url)
        assert compare(judge, ["p", "q"], ["a", "longer"], ["long", "b"]).outcomes == ["b", "a"]
        server.respond = in_turn(says("The second answer is better."))
        with pytest.raises(EndpointNonsense, match=r"prompts\[0\]: .*not 'the second answer is b"):
            compare(judge, ["p"], ["a"], ["b"])
    one, other = (body["messages"][0]["content"] for *_, body in server.requests[:2])
    assert "<first>\na\n" in one and "<second>\nlong\n" in one
    swapped = one.replace("<first>\na\n", "<first>\nlong\n")
    assert other == swapped.replace("<second>\nlong\n", "<second>\na\n")


# --- the file that keeps them --------------------------------------------------------------------

CALLS = {
    "rephrase": (reworded, lambda asked, out=None: rephrase(ROWS, asked, out=out), 8),
    "compare": (longer, lambda asked, out=None: compare(asked, PROMPTS, A, B, out=out), 10),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_interrupted_call_goes_on_where_it_was(tmp_path, name):
    function, call, n = CALLS[name]
    out, whole = tmp_path / "new" / "out.jsonl", tmp_path / "whole.jsonl"
    done = call(Counting(function), whole)
    first, second = Counting(function, fail_at=3), Counting(function)
    with pytest.raises(KeyboardInterrupt):
        call(first, out)
    assert len(out.read_text().splitlines()) == 3  # each is there before the next is asked for
    assert call(second, out) == done == call(Counting(function, fail_at=0), out)
    assert len(second.seen) == n - 3 and not {*first.seen} & {*second.seen}
    assert out.read_bytes() == whole.read_bytes()
    other = Counting(function, "other")
    assert call(other, out) == done and len(other.seen) == n  # its answers are its own


def test_a_file_torn_anywhere_is_mended(tmp_path):
    out = tmp_path / "out.jsonl"
    done = rephrase(ROWS[1:2], Counting(reworded), out=out)
    whole = out.read_bytes()
    for size in [*range(0, len(whole), 29), len(whole) - 2, len(whole) - 1]:
        out.write_bytes(whole[:size])
        writer = Counting(reworded)
        assert rephrase(ROWS[1:2], writer, out=out) == done
        assert len(writer.seen) <= 2 - whole[:size].count(b"\n")
        assert rephrase(ROWS[1:2], Counting(reworded, fail_at=0), out=out) == done


def test_a_file_with_other_letters_or_line_ends_keeps_its_answers(tmp_path):
    """Such as an editor, or Windows, makes of it."""
    out = tmp_path / "out.jsonl"
    rephrase(ROWS, Counting(reworded), out=out)
    text = out.read_text().replace("meaning of it is there", "das wäre „da“, «там», ここ")
    for whole in (text.encode(), text.replace("\n", "\r\n").encode()):
        out.write_bytes(whole + b'{"asked": ["to')  # and a kill tore the last line
        writer = Counting(reworded, fail_at=0)
        assert (
            rephrase(ROWS, writer, out=out)[0]["chosen_gptsemantic"]
            == " das wäre „da“, «там», ここ"
        )
        assert out.read_bytes() == whole
    broken = whole.replace("ä".encode(), b"\xe4")  # in another encoding: it is asked again
    out.write_bytes(broken)
    writer = Counting(reworded)
    assert rephrase(ROWS, writer, out=out).rows == expected()
    assert len(writer.seen) == 1 and out.read_bytes().startswith(broken)


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "out.jsonl"
    for content in (b"my notes\n", b"x", b'{"prompt": "a"}'):
        out.write_bytes(content)
        with pytest.raises(ValueError, match=r"out\.jsonl holds no answers: pass another file"):
            rephrase(ROWS, Counting(reworded), out=out)
        assert out.read_bytes() == content
    with pytest.raises(ValueError, match="out must tell who answered"):
        rephrase(ROWS, reworded, out=tmp_path / "new.jsonl")
    writer = Counting(reworded)
    with pytest.raises(OSError, match=r"out\.jsonl"):
        rephrase(ROWS, writer, out=out / "more.jsonl")
    assert not writer.seen
