"""Small tokenizers, each with a trait that trips up careless tokenising."""

from functools import cache

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = [
    "what color is the sky? it is blue.\nwhere is the sun? in the sky, of course.",
    "the cat sat on the mat. a dog ran after the cat!\nwho let the dogs out? nobody knows.",
    "user: hello there assistant: hi! how are you? i am fine. system: be kind and brief. tool",
    '{"name": "weather", "city": "Rome", "temperature": 21} <think> let me see </think> function',
]
SPECIAL = ["<|end|>", "<|turn|>", "<|done|>", "<|start|>"]
PLAIN = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TURN_END = PLAIN.replace("<|end|>", "<|done|>")
THINK = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
TOOLS = (
    "{% if tools %}<|turn|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|end|>\n"
    "{% endif %}"
    "{% for m in messages %}<|turn|>{{ m.role }}\n"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEMPLATES = {
    "plain": PLAIN,
    "bos": "<|start|>" + PLAIN,
    "prefix space": PLAIN,
    "turn end": TURN_END,
    "think": THINK,
    "no system": NO_SYSTEM + PLAIN,
    "tools": TOOLS,
}


@cache
def _pieces(trait: str) -> Tokenizer:
    pieces = Tokenizer(models.BPE(unk_token=None))
    if trait == "prefix space":  # as SentencePiece has it
        pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        pieces.decoder = decoders.Metaspace(prepend_scheme="always")
        alphabet = sorted({*"".join(TEXT)} - {" "} | {"▁"} | {*map(chr, range(33, 127))} | {"\n"})
    else:
        pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator(TEXT, trainer)
    if trait == "bos":
        start = pieces.token_to_id("<|start|>")
        pieces.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", start)]
        )
    return pieces


def tokenizer_with(trait: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=_pieces(trait),
        chat_template=TEMPLATES[trait],
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
    )
