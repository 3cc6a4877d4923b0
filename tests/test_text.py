"""The rule of what is scored: which text of a request, and which of its tokens."""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thriftroute.errors import ConfigError, DataError
from thriftroute.router.text import (
    CLIP_CHARS,
    Context,
    Conversation,
    Encoded,
    as_conversation,
    encode,
    special_tokens,
    validate_context,
)
from thriftroute.router.tokenizing import ids_by_word, token_ids
from tokenizers import Tokenizer, models, pre_tokenizers, processors

CLS, SEP = 1, 2
FIRST = 10
ALL_CONTEXTS: tuple[Context, ...] = ("last", "conversation", "full")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token a word: `s5`, `h5` and `l5` are 1005, 2005 and 3005; [UNK] is 0."""
    vocab = {"[UNK]": 0, "[CLS]": CLS, "[SEP]": SEP}
    for base, letter in ((1000, "s"), (2000, "h"), (3000, "l")):
        vocab |= {f"{letter}{i}": base + i for i in range(900)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return tokenizer


def words(letter: str, n: int) -> str:
    return " ".join(f"{letter}{i}" for i in range(n))


def ids(
    tokenizer: Tokenizer,
    conversation: Conversation,
    max_tokens: int = 34,
    context: Context = "conversation",
) -> list[int]:
    return encoded(tokenizer, conversation, max_tokens, context).ids


def encoded(
    tokenizer: Tokenizer,
    conversation: Conversation,
    max_tokens: int = 34,
    context: Context = "conversation",
) -> Encoded:
    return encode(
        conversation,
        partial(token_ids, tokenizer),
        max_tokens=max_tokens,
        prefix=[CLS],
        suffix=[SEP],
        context=context,
    )


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


class TestAsConversation:
    def test_string_is_the_last_turn(self) -> None:
        assert as_conversation("hello") == Conversation("", "", "hello")

    def test_conversation_passes_through(self) -> None:
        whole = Conversation("s", "h", "l")
        assert as_conversation(whole) is whole

    def test_roles_are_told_apart(self) -> None:
        messages = [
            {"role": "system", "content": "be brief"},
            user("first"),
            {"role": "assistant", "content": "answer"},
            {"role": "developer", "content": "no jokes"},
            user("second"),
        ]
        assert as_conversation(messages) == Conversation(
            "be brief\n\nno jokes", "first\n\nanswer", "second"
        )

    def test_tool_calls_and_results_after_the_last_user_turn_are_history(self) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
        messages = [
            user("what is 1+1"),
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]
        assert as_conversation(messages) == Conversation(
            "", 'add({"a":1})\nadd({"a":1})\n\n2', "what is 1+1"
        )

    def test_without_a_user_turn_the_last_message_is_the_last_turn(self) -> None:
        messages = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]
        assert as_conversation(messages) == Conversation("", "a", "b")

    @pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "only"}]])
    def test_nothing_to_score_is_blank(self, messages: list[dict[str, Any]]) -> None:
        conversation = as_conversation(messages)
        assert conversation.is_blank
        assert conversation.last == ""

    def test_text_parts_count_and_images_do_not(self) -> None:
        parts = [
            {"type": "text", "text": "what is in"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            "a bare string",
            {"type": "text", "text": None},
            7,
        ]
        assert as_conversation([user(parts)]).last == "what is in\na bare string"

    def test_image_alone_is_blank(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        assert as_conversation([user([image])]).is_blank

    @pytest.mark.parametrize("content", [None, "", []])
    def test_empty_content_leaves_no_gap(self, content: Any) -> None:
        messages = [user("a"), {"role": "assistant", "content": content}, user("b")]
        assert as_conversation(messages) == Conversation("", "a", "b")

    def test_missing_content_is_null(self) -> None:
        assert as_conversation([{"role": "user"}]).is_blank

    @pytest.mark.parametrize(
        "calls", [None, [], ["no call"], [{}], [{"function": None}], [{"type": "custom"}], 7, "x"]
    )
    def test_odd_tool_calls_are_left_out(self, calls: Any) -> None:
        message = {"role": "assistant", "content": "text", "tool_calls": calls}
        assert as_conversation([message]).last == "text"

    @pytest.mark.parametrize("bad", ["text", 1, None, ["role", "user"]])
    def test_message_that_is_no_mapping(self, bad: Any) -> None:
        with pytest.raises(DataError, match="expected a mapping") as caught:
            as_conversation([user("a"), bad])
        assert caught.value.field == "messages[1]"

    @pytest.mark.parametrize("bad", [5, 1.5, {"type": "text"}, True, b"bytes"])
    def test_content_that_is_no_text(self, bad: Any) -> None:
        with pytest.raises(DataError, match="text, a list of parts or null") as caught:
            as_conversation([user(bad)])
        assert caught.value.field == "messages[0].content"

    @pytest.mark.parametrize("bad", [None, 5, b"bytes", {"role": "user", "content": "x"}])
    def test_prompt_that_is_neither_text_nor_messages(self, bad: Any) -> None:
        with pytest.raises(DataError, match="expected text or a list of messages"):
            as_conversation(bad)


class TestContext:
    CONVERSATION = Conversation("s0 s1", "h0 h1", "l0 l1")

    def test_last_alone(self, tokenizer: Tokenizer) -> None:
        assert ids(tokenizer, self.CONVERSATION, context="last") == [CLS, 3000, 3001, SEP]

    def test_conversation_is_history_then_last(self, tokenizer: Tokenizer) -> None:
        expected = [CLS, 2000, 2001, SEP, 3000, 3001, SEP]
        assert ids(tokenizer, self.CONVERSATION) == expected

    def test_full_puts_the_system_text_first(self, tokenizer: Tokenizer) -> None:
        expected = [CLS, 1000, 1001, SEP, 2000, 2001, SEP, 3000, 3001, SEP]
        assert ids(tokenizer, self.CONVERSATION, context="full") == expected

    @pytest.mark.parametrize("context", ALL_CONTEXTS)
    def test_validate_accepts(self, context: Context) -> None:
        assert validate_context(context) == context

    @pytest.mark.parametrize("context", ["", "LAST", "all"])
    def test_validate_refuses_and_lists(self, context: str) -> None:
        with pytest.raises(ConfigError, match="last, conversation, full"):
            validate_context(context)


class TestBudget:
    """34 tokens: [CLS] and [SEP] leave 32; every further part costs one [SEP]."""

    def test_that_fits_is_whole(self, tokenizer: Tokenizer) -> None:
        got = ids(tokenizer, Conversation("", "", words("l", 32)))
        assert got == [CLS, *range(3000, 3032), SEP]

    def test_last_turn_keeps_head_and_tail(self, tokenizer: Tokenizer) -> None:
        got = ids(tokenizer, Conversation("", "", words("l", 100)))
        assert got == [CLS, *range(3000, 3016), *range(3084, 3100), SEP]

    def test_odd_room_gives_the_head_one_more(self, tokenizer: Tokenizer) -> None:
        got = ids(tokenizer, Conversation("", "", words("l", 100)), max_tokens=33)
        assert got == [CLS, *range(3000, 3016), *range(3085, 3100), SEP]

    def test_history_has_a_quarter_and_keeps_its_tail(self, tokenizer: Tokenizer) -> None:
        got = ids(tokenizer, Conversation("", words("h", 100), words("l", 100)))
        # 31 to share: 31 // 4 = 7 for the history, 24 for the last turn.
        assert got == [
            CLS, *range(2093, 2100), SEP, *range(3000, 3012), *range(3088, 3100), SEP,
        ]  # fmt: skip

    def test_system_text_has_an_eighth_and_keeps_its_head(self, tokenizer: Tokenizer) -> None:
        whole = Conversation(words("s", 100), words("h", 100), words("l", 100))
        got = ids(tokenizer, whole, context="full")
        # 30 to share: 3 for the system text, 7 for the history, 20 for the last turn.
        assert got == [
            CLS, *range(1000, 1003), SEP, *range(2093, 2100), SEP,
            *range(3000, 3010), *range(3090, 3100), SEP,
        ]  # fmt: skip

    def test_short_last_turn_leaves_its_room_to_the_history(self, tokenizer: Tokenizer) -> None:
        got = ids(tokenizer, Conversation("", words("h", 100), "l0 l1"))
        assert got == [CLS, *range(2071, 2100), SEP, 3000, 3001, SEP]

    def test_short_history_leaves_its_room_to_the_last_turn(self, tokenizer: Tokenizer) -> None:
        got = ids(tokenizer, Conversation("", "h0", words("l", 100)))
        assert got == [CLS, 2000, SEP, *range(3000, 3015), *range(3085, 3100), SEP]

    def test_history_is_served_before_the_system_text(self, tokenizer: Tokenizer) -> None:
        whole = Conversation(words("s", 100), words("h", 100), "l0")
        got = ids(tokenizer, whole, context="full")
        # 30 to share: 3 for the system text, 1 for the last turn, all the rest for the history.
        assert got == [CLS, *range(1000, 1003), SEP, *range(2074, 2100), SEP, 3000, SEP]

    def test_system_text_takes_what_nobody_wants(self, tokenizer: Tokenizer) -> None:
        got = ids(tokenizer, Conversation(words("s", 100), "h0", "l0"), context="full")
        assert got == [CLS, *range(1000, 1028), SEP, 2000, SEP, 3000, SEP]

    def test_history_alone_is_scored(self, tokenizer: Tokenizer) -> None:
        assert ids(tokenizer, Conversation("", "h0", "")) == [CLS, 2000, SEP]

    def test_lengths_never_exceed_the_limit(self, tokenizer: Tokenizer) -> None:
        sizes = (0, 1, 5, 200)
        for s, h, n, limit, context in itertools.product(
            sizes, sizes, sizes, (10, 11, 17, 34), ALL_CONTEXTS
        ):
            whole = Conversation(words("s", s), words("h", h), words("l", n))
            got = ids(tokenizer, whole, limit, context)
            assert len(got) <= limit
            assert got[0] == CLS
            assert got[-1] == SEP
            wanted = {"last": n, "conversation": h + n, "full": s + h + n}[context]
            if wanted >= limit:
                # Full but for the separators of parts that got no room.
                assert len(got) >= limit - 2

    def test_longer_template(self, tokenizer: Tokenizer) -> None:
        got = encode(
            Conversation("", "h0", words("l", 50)),
            partial(token_ids, tokenizer),
            max_tokens=20,
            prefix=[7, 8],
            suffix=[9, 9],
            context="conversation",
        ).ids
        assert len(got) == 20
        assert got[:5] == [7, 8, 2000, 9, 9]
        assert got[-2:] == [9, 9]


class TestClip:
    def test_head_and_tail_of_a_long_text_count(self, tokenizer: Tokenizer) -> None:
        text = "l1 l2 " + "x " * CLIP_CHARS * 3 + "l3 l4"
        got = ids(tokenizer, Conversation("", "", text), max_tokens=10)
        assert got == [CLS, 3001, 3002, 0, 0, 0, 0, 3003, 3004, SEP]

    def test_the_middle_does_not_count(self, tokenizer: Tokenizer) -> None:
        head, tail = "l1 " * 2000, " l2" * 2000
        expected = ids(tokenizer, Conversation("", "", head + tail), max_tokens=6000)
        other = head + "l3 " * 50_000 + tail
        assert ids(tokenizer, Conversation("", "", other), max_tokens=6000) == expected

    def test_cut_does_not_glue_two_words(self, tokenizer: Tokenizer) -> None:
        text = "l1" * (CLIP_CHARS // 2) + "\n" * CLIP_CHARS + "l2" * (CLIP_CHARS // 2)
        assert len(ids(tokenizer, Conversation("", "", text))) == 4  # two words, two specials

    def test_a_megabyte_is_cut_before_it_is_tokenized(self, tokenizer: Tokenizer) -> None:
        text = "l1 " * 350_000
        whole = tokenizer.encode(text, add_special_tokens=False)
        assert len(whole.ids) == 350_000
        got = ids(tokenizer, Conversation("", "", text), max_tokens=300_000)
        # Three characters a word; the cut in the middle leaves at most a word or two more.
        words = (2 * CLIP_CHARS + 1) // 3
        assert words - 1 <= len(got) - 2 <= words + 2


class TestEncoded:
    """What the cheap features are made of: the last turn, and how long it is before it is cut."""

    def test_the_tokens_of_the_last_turn_are_counted_before_they_are_cut(
        self, tokenizer: Tokenizer
    ) -> None:
        long = encoded(tokenizer, Conversation("", "", words("l", 100)), max_tokens=10)
        assert (len(long.ids), long.tokens) == (10, 100)
        assert long.text == words("l", 100)
        short = encoded(tokenizer, Conversation("", "", "l0 l1"), max_tokens=10)
        assert (short.ids, short.tokens, short.text) == ([CLS, 3000, 3001, SEP], 2, "l0 l1")

    @pytest.mark.parametrize("context", ALL_CONTEXTS)
    def test_system_text_and_history_do_not_count(
        self, tokenizer: Tokenizer, context: Context
    ) -> None:
        whole = Conversation(words("s", 50), words("h", 50), "l0 l1 l2")
        got = encoded(tokenizer, whole, context=context)
        assert (got.text, got.tokens) == ("l0 l1 l2", 3)

    def test_history_alone(self, tokenizer: Tokenizer) -> None:
        got = encoded(tokenizer, Conversation("", "h0 h1", " \n"))
        assert (got.ids, got.text, got.tokens) == ([CLS, 2000, 2001, SEP], "", 0)

    def test_the_text_is_stripped_and_clipped(self, tokenizer: Tokenizer) -> None:
        text = " " + "l1 " * 2000 + "l2 " * 2000
        got = encoded(tokenizer, Conversation("", "", text))
        stripped = text.strip()
        assert got.text == f"{stripped[:CLIP_CHARS]} {stripped[-CLIP_CHARS:]}"
        assert len(got.text) == 2 * CLIP_CHARS + 1
        assert got.tokens == len(got.text.split())

    def test_the_last_text_that_is_not_clipped(self, tokenizer: Tokenizer) -> None:
        text = "x" * 2 * CLIP_CHARS
        assert encoded(tokenizer, Conversation("", "", text)).text == text

    def test_lone_surrogates_are_replaced(self, tokenizer: Tokenizer) -> None:
        assert encoded(tokenizer, Conversation("", "", "l1 \ud83d l2")).text == "l1 ? l2"


class TestOddText:
    @pytest.mark.parametrize("text", ["", " ", "\n\t \u3000\u00a0", " " * 1_000_000])
    def test_blank_is_the_template_alone(self, tokenizer: Tokenizer, text: str) -> None:
        conversation = as_conversation(text)
        assert conversation.is_blank
        for context in ALL_CONTEXTS:
            assert ids(tokenizer, conversation, context=context) == [CLS, SEP]

    def test_system_text_alone_is_blank_but_counts_in_full(self, tokenizer: Tokenizer) -> None:
        conversation = Conversation("s0", "", "")
        assert conversation.is_blank
        assert ids(tokenizer, conversation) == [CLS, SEP]
        assert ids(tokenizer, conversation, context="full") == [CLS, 1000, SEP]

    @pytest.mark.parametrize(
        "text",
        [
            "nul\x00byte",
            "\x00",
            "👩‍👩‍👧‍👦 🇵🇹 emoji",
            "请证明根号三是无理数。",
            "half \ud83d of a pair",
            "\udcff\udc80",
            json.loads('"\\ud83d\\ude00 \\udead"'),
            "a\u0301\u200b\u202e\ufeff",
        ],
    )
    def test_any_text_is_tokenized(self, tokenizer: Tokenizer, text: str) -> None:
        got = ids(tokenizer, Conversation("", text, text))
        assert len(got) > 2

    def test_lone_surrogate_spoils_no_other_word(self, tokenizer: Tokenizer) -> None:
        assert ids(tokenizer, Conversation("", "", "l1 \ud83d l2")) == [CLS, 3001, 0, 3002, SEP]

    def test_bert_tokenizer_drops_nul_bytes(self, tiny_bundle: Path) -> None:
        bert = ids_by_word(Tokenizer.from_file(str(tiny_bundle / "tokenizer.json")))
        clean, dirty = (
            encode(as_conversation(text), bert, max_tokens=32, prefix=[2], suffix=[3])
            for text in ("hello easy", "hel\x00lo \x00easy\x00")
        )
        assert clean.ids == dirty.ids
        assert clean.tokens == dirty.tokens == 2

    @settings(max_examples=150, deadline=None)
    @given(
        text=st.text(st.characters(codec=None), max_size=60),
        history=st.text(max_size=30),
        limit=st.integers(10, 20),
    )
    def test_no_text_breaks_it(
        self, tokenizer: Tokenizer, text: str, history: str, limit: int
    ) -> None:
        messages = [{"role": "assistant", "content": history}, user(text)]
        got = ids(tokenizer, as_conversation(messages), limit)
        assert 2 <= len(got) <= limit
        assert got[0] == CLS
        assert got[-1] == SEP


class TestSpecialTokens:
    def test_template_is_found(self, tokenizer: Tokenizer) -> None:
        # "a" is unknown to this vocabulary, but has a token of its own all the same.
        assert special_tokens(tokenizer) == ([CLS], [SEP])

    def test_no_template(self) -> None:
        bare = Tokenizer(models.WordLevel({"a": 5}, unk_token="a"))
        assert special_tokens(bare) == ([], [])

    def test_vocabulary_without_any_token_for_a_letter(self) -> None:
        with pytest.raises(ConfigError, match="not supported"):
            special_tokens(Tokenizer(models.BPE({}, [])))
