"""The attacks by who attacks, to learn what, by which means, as a page shows them.

    python -m tests.docs.taxonomy    # writes the tables of the page anew

They are made from what each attack says of itself, and stand between two marks of the page.
"""

import re
from collections.abc import Iterator

import privtrain as pt
from privtrain.attacks.taxonomy import EVERYBODY, About, Capability, Goal
from privtrain.command.tokens import ATTACK_TOKENS
from tests.docs.pages import DOCS

PAGE = DOCS / "threat_model.md"
MARKS = re.compile(r"(<!-- taxonomy -->\n\n).*?(\n\n<!-- end of taxonomy -->)", re.DOTALL)


def abouts() -> dict[str, About]:
    """Token to what the attack says of itself."""
    return {token: getattr(pt, name).about for token, name in sorted(ATTACK_TOKENS.items())}


def tables() -> str:
    """Who can carry out what by which means; and each attack by itself."""
    return "\n\n".join(("\n".join(_by_observer()), "\n".join(_by_attack())))


def _by_observer() -> Iterator[str]:
    known = abouts()
    means = [one for one in Capability if any(about.capability is one for about in known.values())]
    yield f"| who attacks | to learn | {' | '.join(means)} |"
    yield "|---" * (2 + len(means)) + "|"
    for observer in EVERYBODY:
        for goal in Goal:
            cells = [
                ", ".join(
                    f"`{token}`"
                    for token, about in known.items()
                    if observer in about.observers and (about.goal, about.capability) == (goal, one)
                )
                for one in means
            ]
            if any(cells):
                yield f"| {observer} | {goal} | {' | '.join(cell or '–' for cell in cells)} |"


def _by_attack() -> Iterator[str]:
    yield "| attack | unit, relation | shadow models | where a coin, or a bound of 0, is found |"
    yield "|---|---|---|---|"
    for token, about in abouts().items():
        relation = about.relation.replace("_", "-")
        shadows = "yes" if about.shadows else "no"
        yield f"| `{token}` | {about.unit}, {relation} | {shadows} | {about.zero} |"


def written() -> str:
    """The page with its tables as they have to be."""
    text = PAGE.read_text(encoding="utf-8")
    return MARKS.sub(lambda found: f"{found[1]}{tables()}{found[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
