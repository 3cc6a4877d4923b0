"""Training, export and cards: labels to a bundle. torch lives here and nowhere else: in `encoder`,
`models.bert` and `models.loop`. Whatever starts from a bundle does without it."""

from ..errors import require_extra

# Checked at the door, so that the error names the extra and not some module deep inside. The other
# packages of the extra are checked where they are used: importing them all takes seconds.
require_extra("onnx", "fit")
