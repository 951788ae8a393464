"""The languages that there are, and the closed vocabulary of node kinds of each."""

from __future__ import annotations

from .kinds_java import JAVA
from .kinds_javascript import JAVASCRIPT
from .kinds_python import PYTHON
from .language_rules import LanguageRules

LANGUAGES: dict[str, LanguageRules] = {"java": JAVA, "javascript": JAVASCRIPT, "python": PYTHON}


def language_rules(language: str) -> LanguageRules:
    """The rules of `language`. Raises ValueError, naming the languages that exist, for any other name."""
    try:
        return LANGUAGES[language]
    except (KeyError, TypeError):
        known = ", ".join(sorted(LANGUAGES))
        raise ValueError(f"language: got {language!r}, but only these exist: {known}") from None


def rules_of_version(version: str) -> LanguageRules:
    """The rules whose ids a batch of `version` holds. Raises ValueError where this installation has none."""
    for rules in LANGUAGES.values():
        if rules.version == version:
            return rules
    known = ", ".join(sorted(rules.version for rules in LANGUAGES.values()))
    raise ValueError(f"kind_version: got {version!r}, but this installation knows only: {known}")


def kind_names(language: str = "python") -> tuple[str, ...]:
    """Names of the node kinds; the position is the id in ``Tree.kind``. Id 0 is ``unknown``, 1 is ``ERROR``.

    >>> kind_names("python")[:3]
    ('unknown', 'ERROR', 'module')
    """
    return language_rules(language).kinds


def num_kinds(language: str = "python") -> int:
    """Size of the vocabulary of node kinds (the width of a classifier over kinds)."""
    return len(language_rules(language).kinds)
