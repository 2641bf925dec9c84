"""The exposure of an observer of a sum: what it reads, and which noise it can subtract."""

from privtrain.core.observers import AGGREGATOR, CURATOR, PARTICIPANT, Exposure, Observer
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.release.placement import Drawer, Placement


def sum_exposure(
    observer: Observer,
    noise_at: Placement,
    *,
    parties: int,
    reads_messages: bool,
    knows_noise: bool,
    sealed: bool = False,
) -> Exposure:
    """The exposure of an observer to one release of a sum over parties.

    Args:
        observer: Who looks. The curator, and a coalition that names the aggregator, see what the
            aggregator sees.
        noise_at: Who draws the noise.
        parties: Smallest number of contributing parties.
        reads_messages: Whether the aggregator reads single messages.
        knows_noise: Whether the aggregator knows the noise that it draws.
        sealed: Whether not even the aggregator reads the sum, of which only the finish's value is
            opened.

    Returns:
        The exposure; `docs/concepts.md` tabulates it.
    """
    # Who pools the rows reads them all and draws the noise, too.
    inside = observer in (AGGREGATOR, CURATOR) or AGGREGATOR_NAME in observer.corrupted
    if noise_at.drawer is Drawer.AGGREGATOR:
        # Whoever reads the messages before the noise needs no noise to subtract.
        known = 1.0 if inside and (knows_noise or reads_messages) else 0.0
        return Exposure(
            single_messages=inside and reads_messages,
            knows_sample=inside,
            noise_known=known,
            finish_only=not inside or sealed,
        )
    # A single message carries only the noise that its own party drew.
    if inside and reads_messages:
        return Exposure(
            single_messages=True, knows_sample=True, noise_known=0.0, variance=noise_at.fraction
        )
    # A split promises no more than the variance that its honest survivors draw together.
    ceiling = 1.0 if noise_at.split else float(parties)
    # A participant knows its own noise. The party that the guarantee is for is always honest.
    colluding = 1 if observer == PARTICIPANT else len(observer.corrupted - {AGGREGATOR_NAME})
    variance = min(ceiling, parties * noise_at.fraction)
    hidden = min(ceiling, max(parties - colluding, 1) * noise_at.fraction)
    return Exposure(
        single_messages=False,
        knows_sample=inside,
        noise_known=1.0 - hidden / variance,
        variance=variance,
        finish_only=not inside or sealed,
    )
