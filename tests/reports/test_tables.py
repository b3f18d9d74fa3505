"""Names in Markdown and values in JSON: whatever they hold, they are shown as they are."""

from carvision.reports.tables import code_block, escape_markdown, without_nan


def test_markup_in_names_is_escaped():
    for text, escaped in {
        "Audi A4": "Audi A4", "a|b": r"a\|b", "data.batch_size _x__y_": r"data.batch_size \_x\_\_y\_",
        "<b onclick=x>": r"\<b onclick=x>", "*a* _b_ `c` ~~d~~": r"\*a\* \_b\_ \`c\` \~\~d\~\~",
        "![x](http://y) www.z.org": r"!\[x\](http:\//y) www\.z.org", "a\n# b\r\n\n---": r"a \# b ---",
        "R&amp;D $5$": r"R\&amp;D \$5\$", "- a": r"\- a", "---": r"\---", "1. a": r"1\. a", "> a": r"\> a",
        "-0.5": "-0.5", "3.5": "3.5", "\\": r"\\", 7: "7",
    }.items():  # fmt: skip
        assert escape_markdown(text) == escaped


def test_the_fence_of_a_code_block_is_not_in_its_text():
    assert code_block("a: 1", "yaml") == "```yaml\na: 1\n```"
    assert code_block("a\n```\n````\n<b>").splitlines()[::5] == ["`````", "`````"]


def test_nan_is_none_at_any_depth():
    nan = float("nan")
    assert without_nan({"a": nan, "b": [1.5, nan, (2, "nan")]}) == {"a": None, "b": [1.5, None, [2, "nan"]]}
