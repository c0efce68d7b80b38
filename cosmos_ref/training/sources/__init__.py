"""Where training clips come from: the simulated world, files, or shards that `cosmos-ref prepare` made of files."""

from pathlib import Path

from cosmos_ref.config import Config
from cosmos_ref.training.sources.clips import Bucket, Clips, Domain, Source, domains_of
from cosmos_ref.training.sources.folder import FolderSource
from cosmos_ref.training.sources.shards import ShardSource, is_prepared
from cosmos_ref.training.sources.world import MAX_SEED, TRAINING_SCENES, WorldSource

__all__ = [
    "MAX_SEED",
    "TRAINING_SCENES",
    "Bucket",
    "Clips",
    "Domain",
    "FolderSource",
    "ShardSource",
    "Source",
    "WorldSource",
    "domains_of",
    "open_source",
]


def open_source(folder: Path | None, config: Config, *, resize: bool = False, skip: bool = False) -> Source:
    """The clips of a training: of a prepared folder, of a folder of ordinary files, or, without one, simulated.

    With `skip`, files that cannot be used are left out.

    Raises:
        UserError: there are none, or they do not fit the configuration.
    """
    data, seed = config.data, config.train.seed
    if folder is None:
        return WorldSource(config.clip, data.world, seed, data.buckets)
    if is_prepared(folder):
        return ShardSource(folder, config)
    domains = domains_of(data)
    return FolderSource(folder, config.clip, resize=resize, seed=seed, data=data, domains=domains, skip=skip)
