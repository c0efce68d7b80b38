"""Where training clips come from: the simulated world, files, or shards that `cosmos-ref prepare` made of files."""

from cosmos_ref.training.sources.clips import Bucket, Clips, Domain, Source
from cosmos_ref.training.sources.folder import FolderSource
from cosmos_ref.training.sources.world import MAX_SEED, TRAINING_SCENES, WorldSource

__all__ = ["MAX_SEED", "TRAINING_SCENES", "Bucket", "Clips", "Domain", "FolderSource", "Source", "WorldSource"]
