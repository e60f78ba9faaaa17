"""Formulas in texts: typeset safely and readably in every kind of output, or refused in one line."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesascope.formulas import (
    FormulaError,
    Segment,
    escape_dollars,
    render_html,
    render_plain,
    split_formulas,
    validate_formulas,
)
from mesascope.formulas._nodes import ATTRIBUTES, NUM_CHILDREN, ROWS, TOKENS
from mesascope.table_formats import escape_latex, escape_markdown

FRAGMENTS = (
    *r"x y 1 2.5 + - = < > & # { } ( ) [ ] | _ ^ ' ~ , \ $ % <b> </math> &lt; &#60; \" é ∑ ⟨".split(),
    *r"\frac \sqrt \hat \alpha \mathbf \mathbb{R} \text{<i>} \left( \right) \sum \in \{ \} \, \quad \\ \$ \%".split(),
    *r"\href{javascript:alert(1)} \class{a} \style{color:red} \color{red} \unicode{x3c} \def\a \newcommand \a".split(),
    *r"\begin{matrix} \end{matrix} \begin{cases} \end{cases} \verb|<b>| \over \choose \limits \not \rule".split(),
    "\u202e",
    " ",
)


class Elements(HTMLParser):
    """Collects elements and attributes as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("no formula", "no formula"),
        ("$x' = a x + b$; a and b", "x′ = ax + b; a and b"),
        (r"a price of \$5 and \$6", "a price of $5 and $6"),
        ("$5 and $10", "$5 and $10"),  # as in Pandoc
        ("from $1$ to $2$.", "from 1 to 2."),
        ("one $ sign", "one $ sign"),
        (r"$\lVert x[n+1] - x[n] \rVert^2$", "‖x[n + 1] − x[n]‖²"),
        (r"$\mathbf{x}_t \in \mathbb{R}^n$", "x_t ∈ ℝⁿ"),
        (r"$W_Q^{(h)}$ and $x_0^{-1}$", "W_Q^(h) and x₀⁻¹"),
        (r"$\operatorname{softmax}(Q K^\top / \sqrt{d})$", "softmax(QKᵀ/√d)"),
        (r"$\sqrt{d} x$, $k_i v$, $\frac12 x$, $x^{-\alpha}$", "√d x, k_i v, (1/2)x, x^(−α)"),
        (r"$\frac{a + b}{2}$, $a_i / b_i$, $a_i * b_i$", "(a + b)/2, a_i/b_i, a_i * b_i"),
        (r"$x_2 y$, $x_t y$, $x^2 y$, $x^k y$, $f_1(x)$", "x₂y, x_t y, x²y, x^k y, f₁(x)"),
        (r"$\hat{x} = \bar{y}$", "x̂ = ȳ"),
        (r"$f = -\log \sum_i \exp(x_i)$", "f = −log ∑_i exp(x_i)"),
        (r"$a, b \sim \mathcal{U}(-1, 1)$", "a, b ∼ U(−1, 1)"),
        (r"$x \in \{0, 1\}$, $50\%$", "x ∈ {0, 1}, 50%"),
        (r"$\binom{n}{k}$", "(n choose k)"),
        (r"$\begin{matrix} a & b \\ c & d \end{matrix}$", "a, b; c, d"),
        (r"$a \bmod p$", "a mod p"),
        ("$(X^\\top X)^{-1}\nX^\\top y$", "(XᵀX)⁻¹Xᵀy"),
    ],
)
def test_plain_text_is_readable(text, plain):
    assert render_plain(text) == plain


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (r"\foo x", r"has the unknown command \\foo"),
        (r"\frac{a}{b", "has a brace { without }"),
        ("a}", "has a brace } without {"),
        (r"\frac{a}", "has a command with 1 of its 2 arguments"),
        ("a_", "is not complete"),
        ("x^2^3", "is not complete"),
        (r"\left( a", "is not complete"),
        (r"\begin{matrix} a", r"is not complete \(missing end\)"),
        (r"\,", "is empty"),
        ("a & b", "has & outside of its place"),
        ("a % b", "has a comment"),
        (r"\newcommand{\a}{b}\a", "defines a command"),
        (r"\href{javascript:alert(1)}{x}", "sets href"),
        (r"\style{color: red}{x}", "sets style"),
        (r"\class{card}{x}", "sets class"),
        (r"\color{red} x", "sets mathcolor"),
        (r"\boxed{x}", "needs the element menclose"),
        ("x\u202ey", r"x\\u202ey\$ has the invisible character U\+202E"),
        ("x" * 401, "has 401 characters, of at most 400"),
        (r"\hat" * 90 + " x", "has more than 20 commands in each other"),
        ("{" * 30 + "}" * 30, "has more than 20 braces in each other"),
    ],
)
def test_what_cannot_be_typeset_is_refused_in_one_line_and_shown_as_its_source(source, problem):
    text = f"so ${source}$."
    with pytest.raises(FormulaError, match=problem) as error:
        validate_formulas(text)
    assert "\n" not in str(error.value)
    assert r"write \$ for a dollar sign" in str(error.value)
    assert split_formulas(text) == [Segment(text)]
    assert Elements(render_html(text)).tags == []
    assert render_plain(text) == text


@pytest.mark.parametrize("text", ["$5", "$5 and $10", "a $ b", "$$x$$", "$ x $", "$x$ and $y"])
def test_a_single_dollar_sign_is_refused(text):
    with pytest.raises(FormulaError, match=r"dollar signs must enclose .* write \\\$ for a dollar sign"):
        validate_formulas(text)


@pytest.mark.parametrize("text", ["", "none", "$x$", r"\$5 and \$10", r"$50\%$ of \$2, $a$-$b$"])
def test_valid_texts_are_accepted(text):
    validate_formulas(text)


def test_a_formula_becomes_mathml_with_an_alternative_and_other_text_is_escaped():
    html = render_html(r'<b>"$a < b$"</b> & $\mathrm{LN}(x)$')
    assert html == (
        '&lt;b&gt;&quot;<math alttext="a &lt; b"><mi>a</mi><mo>&lt;</mo><mi>b</mi></math>&quot;&lt;/b&gt; &amp; '
        '<math alttext="LN(x)"><mi>LN</mi><mo stretchy="false">(</mo><mi>x</mi><mo stretchy="false">)</mo></math>'
    )
    assert html.__html__() == html  # templates do not escape it once more


def test_letters_of_other_alphabets_are_characters_which_all_browsers_draw():
    html = render_html(r"$\mathbb{E} \boldsymbol{x} \mathbf{A B} \mathcal{L} \mathbf{\beta 2} \mathrm{d}$")
    assert re.sub("<[^>]+>", "", html) == "𝔼𝒙𝐀𝐁ℒ𝛃𝟐d"
    assert re.findall('mathvariant="([^"]+)"', html) == ["normal"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join))
def test_any_formula_is_refused_or_becomes_mathml_and_escaped_text_only(source):
    for text in (f"${source}$", source):
        found = Elements(render_html(text))
        assert set(found.tags) <= {"math", *TOKENS, *ROWS, *NUM_CHILDREN}
        assert set(found.attributes) <= ATTRIBUTES | {"alttext"}
        assert not re.search(r"<(?!/?m[a-z]+\b)", render_html(text))
        render_plain(text)
        escape_latex(text, formulas=True)


def test_names_of_files_begin_no_formula():
    name = escape_dollars("$HOME/$USER$.txt")
    validate_formulas(name)
    assert render_plain(name) == "$HOME/$USER$.txt"


def test_latex_and_markdown_keep_the_source():
    text = r"50 % of $|x|_1 < \alpha$ for \$2"
    assert escape_latex(text, formulas=True) == r"50 \% of $|x|_1 < \alpha$ for \$2"
    assert escape_markdown(text, formulas=True) == r"50 % of $\vert x\vert _1 < \alpha$ for \$2"


def test_the_converter_is_imported_for_formulas_only():
    code = (
        "import sys; from mesascope.formulas import render_plain; render_plain('no formula, $5');"
        "assert 'latex2mathml' not in sys.modules; render_plain('$x$'); assert 'latex2mathml' in sys.modules;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_signs_and_brackets_are_spaced_as_in_a_formula():
    html = render_html(r"$x = -a$, $(-1, 2)$, $f(a) - b$, $\lvert a \rvert$, $\langle a \rangle$, $a \sim b$, $x'$")
    assert html.count('<mo form="prefix">−</mo>') == 2  # in a sum, a minus has spaces on both sides
    assert "<mo>−</mo><mi>b</mi>" in html
    for bracket in "(|⟨":
        assert f'<mo stretchy="false">{bracket}</mo>' in html
    assert "<mo>∼</mo>" in html
    assert "<mo>′</mo>" in html


def test_a_long_formula_has_parts_after_which_a_line_may_end():
    terms = " + ".join(f"a_{{{k}}} x^{{{k}}}" for k in range(10, 20))
    html = render_html(f"$y = {terms}$")
    parts = re.findall('<math alttext="([^"]+)">', html)
    assert len(parts) > 3
    assert " ".join(parts) == render_plain(f"$y = {terms}$")
    assert all(part.endswith("+") for part in parts[1:-1])
    assert render_html("$y = x$").count("<math") == 1
