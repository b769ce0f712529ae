"""From text to token ids, by the paper's format; that of training: test_lm_from_dataset."""

import pytest
from tiny import tiny_rows, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from lmdyn.lm import Format
from lmdyn.lm.data import as_probes
from lmdyn.lm.tokens import encode

PAPER = Format("paper")


def byte_tokenizer():
    """One byte, one token, spaces included; EOS is one token more."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({c: i for i, c in enumerate([*alphabet, "<eos>"])}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_prompt_and_response_are_tokenised_apart_and_eos_is_appended():
    tokenizer = byte_tokenizer()
    row = {"prompt": "\n\nHuman: hi<eos>\n\nAssistant:", "chosen": " Hello.", "rejected": " No"}
    (tokens,) = encode(tokenizer, as_probes([row], format=PAPER))
    assert tokenizer.decode(tokens.prompt) == row["prompt"]  # EOS may end its turns
    assert tokenizer.eos_token_id in tokens.prompt
    assert {k: tokenizer.decode(ids) for k, ids in tokens.responses.items()} == {
        "chosen": " Hello.<eos>",
        "rejected": " No<eos>",
    }
    assert tokens.responses["chosen"][-1] == tokenizer.eos_token_id
    assert tokens.truncated == ()


@pytest.mark.parametrize(("keeps", "kept"), [("end", "b" * 256), ("start", "a" * 256)])
def test_a_long_prompt_keeps_its_end_or_its_start(keeps, kept):
    row = {"prompt": "a" * 300 + "b" * 300, "chosen": "c" * 100}
    (tokens,) = encode(
        byte_tokenizer(), as_probes([row], format=Format("paper", prompt_keeps=keeps))
    )
    assert byte_tokenizer().decode(tokens.prompt) == kept
    assert len(tokens.responses["chosen"]) == 101


def test_a_prompt_is_cut_only_where_its_longest_response_does_not_fit():
    row = {"prompt": "p" * 400, "chosen": "c" * 111}
    rows = as_probes([row, row | {"rejected": "r" * 112}], ["chosen"], PAPER)
    whole, cut = encode(byte_tokenizer(), rows)
    assert len(whole.prompt) == 400  # 400 + 111 + EOS = 512
    assert len(cut.prompt) == 256 and len(cut.responses["chosen"]) == 112


def test_then_the_response_is_cut_counted_and_reported():
    rows = [
        {"prompt": "p" * 300, "chosen": "c" * 300, "rejected": "r"},
        {"prompt": "p", "chosen": "c"},
    ]
    with pytest.warns(UserWarning, match=r"1 of 3 responses were cut.*max_length=512"):
        tokens, other = encode(byte_tokenizer(), as_probes(rows, format=PAPER))
    assert len(tokens.prompt) + len(tokens.responses["chosen"]) == 512
    assert byte_tokenizer().eos_token_id not in tokens.responses["chosen"]
    assert tokens.truncated == ("chosen",) and other.truncated == ()


def test_all_responses_begin_as_chosen_does_unless_told_otherwise():
    tokenizer = byte_tokenizer()
    rows = [{"prompt": "Q:", "chosen": " yes", "rejected": "no", "irr_hum": "\n so"}]

    def decoded(probes):
        responses = encode(tokenizer, probes)[0].responses.values()
        return [tokenizer.decode(r[:-1]) for r in responses]

    assert decoded(as_probes(rows, format=PAPER)) == [" yes", " no", " so"]
    assert decoded(as_probes(rows, format=Format("paper", as_written=True))) == [
        " yes",
        "no",
        "\n so",
    ]
    rows[0]["chosen"] = "yes"
    assert decoded(as_probes(rows, format=PAPER)) == ["yes", "no", "so"]


@pytest.mark.parametrize("name", ["chosen", "rejected"])
def test_eos_inside_a_response_is_refused(name):
    rows = [{"prompt": "a", "chosen": "b"}, {"prompt": "hi", "chosen": "a", name: "a <eos> b"}]
    with pytest.raises(ValueError, match=rf"rows\[1\]: '{name}' contains the EOS token"):
        encode(byte_tokenizer(), as_probes(rows, format=PAPER))


def test_a_tokenizer_without_eos_and_formats_that_leave_no_room_are_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        encode(tokenizer, as_probes(tiny_rows()))
    with pytest.raises(ValueError, match="smaller than max_length"):
        Format("paper", max_length=256)
    with pytest.raises(ValueError, match="unknown side for prompt_keeps"):
        Format(prompt_keeps="middle")
