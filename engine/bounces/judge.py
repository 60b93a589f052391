"""What a region asks about each outcome: its class. Replies that no rule knows are counted on the way."""

from engine.bounces.classifier import Classification, Classifier
from engine.bounces.unknown import UnknownReplies
from engine.values.outcome import Outcome, OutcomeKind

_ATTEMPTED = frozenset({OutcomeKind.BOUNCED, OutcomeKind.DEFERRED, OutcomeKind.EXPIRED})


class Judge:
    """Classifies a region's outcomes, and counts the replies that no rule knows."""

    def __init__(self, classifier: Classifier, unknown: UnknownReplies) -> None:
        self._classifier = classifier
        self.unknown = unknown

    def classify(self, outcome: Outcome) -> Classification:
        found = self._classifier.classify(outcome.kind, outcome.scope, outcome.reply)
        if not found.known and outcome.kind in _ATTEMPTED:
            self.unknown.note(outcome.reply, outcome.at_ms)
        return found
