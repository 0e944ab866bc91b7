"""What the chat page showed comes out as Markdown, what a person typed stays, and no markup is too much."""

import html
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_prep
from data_prep.conversation import Conversation, DropReason, InvalidConversation, Role, conversation_from_record
from data_prep.html_to_markdown import html_to_markdown
from data_prep.sources import read_records

PROSE = '<div class="markdown prose w-full break-words dark:prose-invert light">'
HEADER = (
    '<pre><div class="bg-black rounded-md mb-4"><div class="flex items-center"><span>{label}</span>'
    '<button class="flex ml-auto gap-2"><svg viewBox="0 0 24 24"><path d="M1 1"></path></svg>{copy}</button></div>'
    '<div class="p-4 overflow-y-auto">'
)
KATEX = (
    '<span class="katex"><span class="katex-mathml"><math><semantics><mrow><mi>a</mi></mrow>'
    '<annotation encoding="application/x-tex">a &lt; b_1</annotation></semantics></math></span>'
    '<span class="katex-html" aria-hidden="true"><span class="base">a&lt;b1</span></span></span>'
)
DEMO_CHATS = Path(data_prep.__file__).parent / "data" / "demo_chats.json"


PIECES = {
    "<p><code>code</code>, <strong>bold</strong>, <em>thin</em>, <del>no</del></p>": "`code`, **bold**, *thin*, ~~no~~",
    "<p>One</p>\n<p>two\nlines<br>and a break</p>": "One\n\ntwo\nlines\nand a break",
    "<h2>Title</h2><p>a</p><hr><h3>Next</h3>": "## Title\n\na\n\n---\n\n### Next",
    "<p>snake_case *star* a\\b 1. # [x]  y &amp; &lt;z&gt;</p>": "snake_case *star* a\\b 1. # [x]  y & <z>",
    "<p>Add 1 / 2 cup</p><p>1 / 2</p>": "Add 1 / 2 cup\n\n1 / 2",
    "<ol><li><p>First</p></li><li>Second <ul><li>a</li><li>b</li></ul></li></ol><p>End</p>": (
        "1. First\n\n2. Second\n   - a\n   - b\n\nEnd"
    ),
    '<ol start="9"><li>nine</li><li>ten<pre><code>x\n  y</code></pre></li></ol>': (
        "9. nine\n10. ten\n\n    ```\n    x\n      y\n    ```"
    ),
    "<ul><li><ul><li>a</li></ul></li><li></li><li>c</li></ul>": "- - a\n- c",
    "<p>Say:</p><blockquote><p>one</p><ul><li>two</li></ul></blockquote>": "Say:\n\n> one\n>\n> - two",
    '<p>See <a href="https://a.b/?x=1&amp;y=2" target="_new">this</a>.</p>': "See [this](https://a.b/?x=1&y=2).",
    '<p><a href="https://a.b">https://a.b</a> <a>c</a></p>': "https://a.b c",
    '<p><img alt="a cat" src="cat.png"></p>': "![a cat](cat.png)",
    "<table><tr><th>A</th><th>B|C</th></tr><tr><td><p>1</p></td><td><code>x</code>\n2</td></tr></table>": (
        "| A | B\\|C |\n| --- | --- |\n| 1 | `x` 2 |"
    ),
    "<p>a<code>b ` c</code> <code>`</code></p>": "a``b ` c`` `` ` ``",
    f"<p>If {KATEX} then</p>": "If $a < b_1$ then",
    f'<div class="math math-display"><span class="katex-display">{KATEX}</span></div>': "$$\na < b_1\n$$",
    '<p><span class="math math-inline">x^2</span><math><mi>x</mi></math>!</p>': "$x^2$!",
    "<p>a <math><mi>x</mi><mo>+</mo><mn>1</mn></math></p>": "a $x+1$",
}


@pytest.mark.parametrize(("markup", "markdown"), PIECES.items())
def test_an_answer_becomes_markdown(markup: str, markdown: str) -> None:
    assert html_to_markdown(f"{PROSE}{markup}</div>") == markdown


@pytest.mark.parametrize("copy", ["Copy code", "Copy", "copy", ""])
@pytest.mark.parametrize(
    ("label", "classes", "language"),
    [
        ("python", "hljs language-python", "python"),
        ("python", "hljs", "python"),
        ("C++", "hljs language-cpp", "cpp"),
        ("app.py", "hljs", "py"),
        ("src/app.py", "hljs language-python", "python"),
        ("", "", ""),
    ],
)
def test_code_keeps_its_language_and_loses_its_button(copy: str, label: str, classes: str, language: str) -> None:
    code = '\n<span class="hljs-keyword">if</span> a &lt; b:\n    c()\n\n\n\td()\n'
    markup = HEADER.format(label=label, copy=copy) + f'<code class="{classes}">{code}</code></div></div></pre>'
    assert html_to_markdown(markup) == f"```{language}\nif a < b:\n    c()\n\n\n\td()\n```"
    without_button = re.sub("<button.*?</button>", copy, markup)
    assert html_to_markdown(without_button) == html_to_markdown(markup)


def test_text_before_code_that_is_no_label_is_kept() -> None:
    assert html_to_markdown("<pre>See this long text: <code>x</code></pre>") == "```\nSee this long text: x\n```"


@pytest.mark.parametrize(
    "furniture",
    [
        "1 / 2",
        "\n\n2 / 3\n",
        "Copy1234 chars / 56 words",
        "1 / 2Copy 12 chars / 3 words",
        "<div><button>&lt;</button><span>1<!-- --> / <!-- -->2</span><button>&gt;</button></div>",
    ],
)
def test_page_furniture_goes(furniture: str) -> None:
    answer = f"{PROSE}<p>Take 1 / 2 cup.</p></div>"
    assert html_to_markdown(answer + furniture) == "Take 1 / 2 cup."
    assert html_to_markdown(furniture + answer) == "Take 1 / 2 cup."


@pytest.mark.parametrize(
    "text",
    [
        "What does <div> do?",
        "<div>Hello</div> is not centred, why?",
        '<p class="a">x</p>',
        "<p>x <b>y</b></p>",
        "&lt; is an entity",
        "Fix this: <pre>x</pre>",
        "a\n\n\n\nb  \n",
    ],
)
def test_what_a_person_typed_stays(text: str) -> None:
    assert html_to_markdown(text, Role.USER) == text
    assert html_to_markdown(text, Role.SYSTEM) == text


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("<p>What does &lt;div&gt; do?</p>", "What does <div> do?"),
        ("<p>Fix</p><pre>a\n  b &amp;&amp; c</pre>", "Fix\n\n```\na\n  b && c\n```"),
        ("<pre><code>a<br>b</code></pre>", "```\na\nb\n```"),
    ],
)
def test_a_typed_message_in_the_wrapper_of_the_page_is_unwrapped(text: str, markdown: str) -> None:
    assert html_to_markdown(text, Role.USER) == markdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fish &amp; chips, a &lt; b", "Fish & chips, a < b"),
        ("Write `&lt;` for <", "Write `&lt;` for <"),
        ("AT&T &amp; more", "AT&T &amp; more"),
        ("<p> is a tag, and </p> ends it.", "<p> is a tag, and </p> ends it."),
        ("Use this:\n```html\n<div>\n</div>\n```", "Use this:\n```html\n<div>\n</div>\n```"),
        ("a < b and\n\n\nc > d", "a < b and\n\n\nc > d"),
    ],
)
def test_a_plain_answer_is_only_unescaped_where_the_page_escaped_it(text: str, expected: str) -> None:
    assert html_to_markdown(text) == expected


@given(st.text().filter(lambda text: "<" not in text and "&" not in text), st.sampled_from(Role))
def test_text_without_html_is_returned_itself(text: str, role: Role) -> None:
    assert html_to_markdown(text, role) is text


@given(st.text())
def test_escaped_prose_comes_back_as_it_was(text: str) -> None:
    assert html_to_markdown(f"{PROSE}<p>{html.escape(text)}</p></div>") == text.strip()


@given(st.text().filter(lambda code: code == code.strip() != ""))
def test_escaped_code_comes_back_as_it_was_in_a_fence_it_cannot_close(code: str) -> None:
    markdown = html_to_markdown(f'<pre><code class="hljs language-c">{html.escape(code)}</code></pre>')
    fence = re.match("`{3,}", markdown)
    assert fence is not None
    assert markdown == f"{fence[0]}c\n{code}\n{fence[0]}"
    assert fence[0] not in code


TAGS = [
    "p",
    "ul",
    "ol",
    "li",
    "pre",
    "code",
    "table",
    "tr",
    "td",
    "b",
    "a",
    "h1",
    "blockquote",
    "math",
    "svg",
    "button",
]
OTHERS = [
    "<br>",
    "<hr>",
    "<!-- -->",
    "<",
    ">",
    "&",
    '<a href="x">',
    '<span class="katex">',
    "</span>",
    "\0",
    "\ud800",
    "x",
]
FRAGMENTS = st.sampled_from([f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS] + OTHERS)


@given(st.lists(FRAGMENTS).map("".join), st.sampled_from(Role))
def test_no_markup_crashes(markup: str, role: Role) -> None:
    assert isinstance(html_to_markdown(f"<p>{markup}</p>", role), str)
    assert isinstance(html_to_markdown(f"{PROSE}{markup}", role), str)


@pytest.mark.parametrize(
    "markup",
    [
        "<div>" * 10_000 + "x" + "</div>" * 10_000,
        "<ul><li>a" * 10_000 + "</li></ul>" * 10_000,
        "<blockquote>" * 10_000 + "x" + "</blockquote>" * 10_000,
        "<table><tr><td>a|b" * 10_000 + "</td></tr></table>" * 10_000,
        "<p>" + "<a '" * 500_000 + "</p>",
        "<p>" + "<svg>" * 200_000 + "</p>",
        "<pre>" + "a" * 1_000_000 + " " + "b" * 1_000_000 + "<code>x</code></pre>",
        "<p>Some words of an answer.</p>" * 150_000,
    ],
    ids=["div", "list", "quote", "table", "open quotes", "open elements", "long label", "5 MB"],
)
def test_deep_broken_or_long_markup_is_converted_without_its_tags(markup: str) -> None:
    converted = html_to_markdown(markup)
    assert not re.search(r"</?(div|ul|li|blockquote|table|tr|td|p|svg|pre|code)>", converted)
    words = re.sub(r"<[^>]*>?", " ", markup).split()
    assert all(word.split("|")[0] in converted for word in words[:1])


def demo_chats() -> tuple[list[Conversation], Counter[DropReason]]:
    read, dropped = [], Counter[DropReason]()
    for record in read_records(str(DEMO_CHATS)):
        assert record.error is None
        try:
            read.append(conversation_from_record(record.value))
        except InvalidConversation as error:
            dropped[error.reason] += 1
    return read, dropped


def test_the_demo_chats_hold_ordinary_chats_and_two_bad_records() -> None:
    chats, dropped = demo_chats()
    assert len(chats) >= 90
    assert dropped == {DropReason.ROLES_NOT_ALTERNATING: 1, DropReason.UNKNOWN_ROLE: 1}
    assert len({chat.id for chat in chats}) == len(chats)
    assert all(chat.system is None and len(chat.messages) in (2, 4, 6, 8) for chat in chats)
    assert sum(len(chat.messages) > 2 for chat in chats) >= 40
    marked_up = sum(any(PROSE[:28] in message.content for message in chat.messages) for chat in chats)
    assert marked_up >= 30


@pytest.mark.parametrize("chat", demo_chats()[0], ids=lambda chat: chat.id)
def test_no_markup_is_left_in_a_demo_chat(chat: Conversation) -> None:
    for message in chat.messages:
        markdown = html_to_markdown(message.content, message.role)
        assert not re.search(r"copy( code)?$|Copy ?\d|hljs|class=\"[^b]|^\d / \d$|\\[_*]", markdown, re.M | re.I)
        if not chat.id.startswith("chat_html_"):  # those are about tags
            assert not re.search(r"</?[a-z][^>]*>|&[a-z]+;", markdown)
    assert html_to_markdown(chat.messages[-1].content).count("```") % 2 == 0


def test_a_demo_chat_about_tags_keeps_them() -> None:
    (chat,) = (chat for chat in demo_chats()[0] if chat.id == "chat_html_div")
    question, answer, _, example = (html_to_markdown(message.content, message.role) for message in chat.messages)
    assert question == "What does <div> do, and how is it different from <span>?"
    assert "Use <div> for sections of a page" in answer
    assert '```html\n<div class="box">\n  <span>First</span>\n' in example
