"""Names in Markdown: whatever they hold, they are shown as they are."""

import pytest

from carvision.reports.tables import code_block, escape_markdown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("Audi A4", "Audi A4"),
        ("a|b", r"a\|b"),
        ("data.batch_size _x__y_", r"data.batch_size \_x\_\_y\_"),
        ("<b onclick=x>", r"\<b onclick=x>"),
        ("*a* _b_ `c` ~~d~~", r"\*a\* \_b\_ \`c\` \~\~d\~\~"),
        ("[x](http://y) www.z.org", r"\[x\](http:\//y) www\.z.org"),
        ("![x](y)", r"!\[x\](y)"),
        ("a\n# b\r\n\n---", r"a \# b ---"),
        ("R&amp;D $5$", r"R\&amp;D \$5\$"),
        ("- a", r"\- a"),
        ("---", r"\---"),
        ("1. a", r"1\. a"),
        ("> a", r"\> a"),
        ("-0.5", "-0.5"),
        ("3.5", "3.5"),
        ("\\", r"\\"),
        (7, "7"),
    ],
)
def test_nothing_in_a_name_means_anything(text, escaped):
    assert escape_markdown(text) == escaped


def test_nothing_ends_a_block_of_code_within_it():
    assert code_block("a: 1", "yaml") == "```yaml\na: 1\n```"
    assert code_block("a\n```\n````\n<b>").splitlines()[::5] == ["`````", "`````"]
