"""The frame of a page of measurements: headline, what it is about, sections, facts."""

from collections.abc import Mapping, Sequence
from html import escape

from spadnet.evaluate.page import document


def study_page(headline: str, lead: str, sections: Sequence[str], facts: Mapping[str, str]) -> str:
    """Put sections of HTML together to a page.

    Args:
        headline: Of the page.
        lead: What it is about, in a few sentences.
        sections: HTML.
        facts: Name and value, for the footer.
    """
    items = "; ".join(f"{escape(name)}: {escape(text)}" for name, text in facts.items())
    body = [
        f"<h1>{escape(headline)}</h1>",
        f"<p class=lead>{escape(lead)}</p>",
        *sections,
        f"<footer><p>{items}</p></footer>",
    ]
    return document(f"spadnet evaluate: {headline}", body)
