"""The questions about a licence: which there are, what may be answered, what follows from what, and which answers contradict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from herd.errors import UsageError, did_you_mean
from herd.planner import units
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.family.release import Release

YES_NO = ("yes", "no")
USERS = ("users_per_month", "own_users_per_month", "users_now")
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Question:
    """One question: the field that its answer fills, what is asked, the answers to choose from (none: a number or text) and the one
    that is taken when nothing is said."""

    field: str
    asks: str
    choices: tuple[str, ...] = ()
    default: str | None = None


QUESTIONS: tuple[Question, ...] = (
    Question(
        "use",
        "What is it for? research (a study, nothing made available), internal (your own work), service (others use it over a network), "
        "product (handed to others with the weights inside), redistribute-weights (as they are), derivative-model (one made from the "
        "weights), train-other-model (weights or outputs teach another)",
        ("research", "internal", "service", "product", "redistribute-weights", "derivative-model", "train-other-model"),
        "internal",
    ),
    Question("distributes", "Does what you make reach anybody outside, by hand-over or by hosting?", YES_NO),
    Question("commercial", "Is money or production the aim? (matters for Llama 1)", YES_NO, "yes"),
    Question("licensee", "Who takes the licence?", ("individual", "company", "other-entity"), "company"),
    Question(
        "region",
        "Where does the licensee live, or have its principal place of business? "
        "(eea-or-switzerland: Norway, Iceland, Liechtenstein, Switzerland)",
        ("eu", "eea-or-switzerland", "other"),
        "other",
    ),
    Question("users_per_month", "Monthly users of all products and services of the licensee and its affiliates, in {month}"),
    Question("own_users_per_month", "Of them, the licensee's own"),
    Question("users_now", "Today's monthly users (decides nothing)"),
    Question("affiliate_joined_after_release", "Is the limit passed only through a company that joined after the release?", YES_NO, "no"),
    Question("customers_region", "Where are the customers? (decides nothing)", ("eu", "other"), "other"),
    Question("eu_subsidiary", "Does a subsidiary in the EU use the model itself?", YES_NO, "no"),
    Question("role", "Do you have it only as part of somebody's finished product or service?", ("developer", "end-user"), "developer"),
    Question("hosted_by", "Who holds the weights?", ("self", "third-party"), "self"),
    Question("modality", "What is put in?", ("text", "image"), "text"),
    Question("vision_removed", "Is only the text part of it kept and used?", YES_NO, "no"),
    Question("change", "How was the derivative made?", ("fine-tuned", "adapter", "quantised", "merged"), "fine-tuned"),
    Question("also_derived_from", "Other releases that went into a merge, with commas"),
    Question("trains_other_model_with", "What teaches the other model?", ("none", "materials", "outputs"), "none"),
    Question(
        "improves",
        "What is taught?",
        ("none", "same-generation", "other-llama", "other-llm", "small-language-model", "other-ai"),
        "none",
    ),
    Question("model_name", "Name of the derivative or of the model that was taught"),
    Question("mark_use", "Is Llama or Meta used as a brand, or only to say what it is?", ("none", "descriptive", "brand"), "none"),
    Question(
        "purpose",
        "Is the purpose on a list of the use policy?",
        (
            "ordinary", "works-for-listed-industry", "military", "surveillance", "critical-infrastructure", "unlicensed-profession",
            "private-data-without-rights", "malware", "fraud", "passes-as-human", "remove-safety",
        ),
        "ordinary",
    ),
    Question("litigation", "Do you sue anybody?", ("none", "claims-model-infringes", "other"), "none"),
    Question("terminated", "Did Meta end the licence for breach?", YES_NO, "no"),
    Question("separate_licence", "Did Meta give you a licence of your own?", YES_NO, "no"),
    Question("access", "Where is your copy from?", ("by-application", "other"), "by-application"),
)  # fmt: skip
FIELDS: Mapping[str, Question] = {question.field: question for question in QUESTIONS}
DEFAULT_USERS = 1_000_000
_REACHES_OTHERS = ("service", "product", "redistribute-weights")
_STAYS = ("research", "internal")


class Answers:
    """The answers, with defaults where nothing was said; `given` are the fields that somebody filled."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in FIELDS:
                raise UsageError(f"There is no question {name!r}{did_you_mean(name, FIELDS)} The questions: {', '.join(FIELDS)}.")
        self.given = {name: _checked(FIELDS[name], value) for name, value in given.items() if value is not None}

    def __getitem__(self, name: str) -> str:
        """The answer to a question with choices, or a name; "" for one that was not answered and has no default."""
        if name == "distributes":
            return self.distributes
        value = self.given.get(name, FIELDS[name].default)
        return "" if value is None else str(value)

    @property
    def distributes(self) -> str:
        """Follows from the use where it does; else what was said, or no."""
        return str(self.given.get("distributes", "yes" if self["use"] in _REACHES_OTHERS else "no"))

    @property
    def users(self) -> int | None:
        """Users of licensee and affiliates in the counted month; None: not known."""
        value = self.given.get("users_per_month", DEFAULT_USERS)
        return None if value == UNKNOWN else int(value)

    @property
    def own_users(self) -> int | None:
        value = self.given.get("own_users_per_month")
        return None if value is None or value == UNKNOWN else int(value)

    @property
    def also_derived_from(self) -> tuple[str, ...]:
        return tuple(self.given.get("also_derived_from", ()))

    def is_handed_over(self) -> bool:
        """Whether somebody outside gets weights."""
        use, distributes = self["use"], self.distributes == "yes"
        taught_with_weights = use == "train-other-model" and self["trains_other_model_with"] == "materials"
        return use in ("product", "redistribute-weights") or (distributes and (use == "derivative-model" or taught_with_weights))

    def is_service(self) -> bool:
        return self["use"] == "service"


def contradictions(answers: Answers, release: Release) -> tuple[tuple[str, ...], list[str]]:
    """The fields that contradict each other, and a sentence for each contradiction."""
    use, taught = answers["use"], answers["trains_other_model_with"]
    says = answers.given.get("distributes")
    is_text = "image" not in release.inputs
    found: list[tuple[tuple[str, ...], str, bool]] = [
        (("use", "distributes"), f"{use} means that nobody outside gets it, and distributes is yes", use in _STAYS and says == "yes"),
        (("use", "distributes"), f"{use} reaches others, and distributes is no", use in _REACHES_OTHERS and says == "no"),
        (
            ("role", "use"),
            f"an end user of a finished product does not do this: {use}",
            answers["role"] == "end-user" and use not in _STAYS,
        ),
        (("release", "modality"), f"{release.name} takes no images", is_text and answers["modality"] == "image"),
        (("release", "vision_removed"), f"{release.name} has no image part to remove", is_text and answers["vision_removed"] == "yes"),
        (
            ("vision_removed", "modality"),
            "the image part is removed, and images are put in",
            answers["vision_removed"] == "yes" and answers.given.get("modality") == "image",
        ),
        (
            ("use", "trains_other_model_with"),
            "another model is taught, and with nothing of this one",
            use == "train-other-model" and taught == "none",
        ),
        (
            ("trains_other_model_with", "improves"),
            f"{taught} teach something, and improves says nothing is taught",
            taught != "none" and answers["improves"] == "none",
        ),
        (
            ("own_users_per_month", "users_per_month"),
            "the licensee alone has more users than it has together with its affiliates",
            answers.own_users is not None and answers.users is not None and answers.own_users > answers.users,
        ),
        (
            ("hosted_by", "use"),
            f"{use} needs the weights, and somebody else holds them",
            answers["hosted_by"] == "third-party" and use in ("product", "redistribute-weights"),
        ),
    ]
    fields = dict.fromkeys(field for names, _, is_so in found if is_so for field in names)
    return tuple(fields), [said for _, said, is_so in found if is_so]


def _checked(question: Question, value: Any) -> Any:
    if question.field in USERS:
        return _users(question.field, value)
    if question.field == "also_derived_from":
        return _names(value)
    if not question.choices:
        return str(value).strip()
    bare = str(value).strip().lower().replace("_", "-").replace(" ", "-")
    if bare not in question.choices:
        raise UsageError(
            f"{question.field} is {value!r:.60}{did_you_mean(bare, question.choices)} It must be one of {', '.join(question.choices)}."
        )
    return bare


def _users(name: str, value: Any) -> int | str:
    if isinstance(value, str):
        if value.strip().lower() == UNKNOWN:
            return UNKNOWN
        value = units.count(value, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{name} is {value!r:.60}; it must be a number of people, such as 10M, or unknown.")
    return value


def _names(value: Any) -> tuple[str, ...]:
    pieces: Sequence[Any] = value.split(",") if isinstance(value, str) else value
    return tuple(str(piece).strip() for piece in pieces if str(piece).strip())


def next_question(given: Mapping[str, Any], release: Release, limit: int) -> Question | None:
    """What to ask next so that the ruling does not rest on something that nobody said; None when all that matters is answered."""
    answers = Answers(given)
    for name, matters in _asked(answers, release, limit):
        if matters and name not in answers.given:
            return FIELDS[name]
    return None


def _asked(answers: Answers, release: Release, limit: int) -> list[tuple[str, bool]]:
    """The questions in the order in which they are asked, and whether each matters after what was said."""
    use, region = answers["use"], answers["region"]
    is_made = use in ("derivative-model", "train-other-model")
    is_seeing = "image" in release.inputs
    users, is_llama_1 = answers.users, release.licence_id == "llama1"
    is_many = users is not None and users > limit
    return [
        ("use", True),
        ("distributes", is_made),
        ("change", use == "derivative-model"),
        ("also_derived_from", answers["change"] == "merged"),
        ("trains_other_model_with", use == "train-other-model"),
        ("improves", use == "train-other-model"),
        ("model_name", is_made and answers.distributes == "yes"),
        ("commercial", is_llama_1),
        ("access", is_llama_1),
        ("licensee", is_seeing),
        ("region", not is_llama_1),
        ("role", use in _STAYS and not is_llama_1),
        ("hosted_by", use in ("service", "internal", "research")),
        ("vision_removed", is_seeing and region == "eu"),
        ("eu_subsidiary", is_seeing and region == "other" and answers["licensee"] == "company"),
        ("users_per_month", not is_llama_1 and answers["role"] == "developer" and release.licence_id != "apache-2.0"),
        ("separate_licence", is_many),
        ("own_users_per_month", is_many),
        ("affiliate_joined_after_release", is_many),
        ("purpose", release.licence_id != "apache-2.0"),
    ]
