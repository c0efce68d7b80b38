"""WebDataset tars of raw videos and images, as they are commonly handed around."""

import tarfile
from pathlib import Path

from cosmos_ref.training.sources.folder import LeftOut
from cosmos_ref.video_io import IMAGE_SUFFIXES, VIDEO_SUFFIXES

CAPTION = "txt"


def find_tars(folder: Path) -> list[Path]:
    """The tars of a folder by name."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))


def unpack(tars: list[Path], into: Path) -> list[LeftOut]:
    """Write the videos and images of tars into a folder, each with its caption beside it, and say what was no use.

    A sample is what shares a key: `key.mp4` and `key.txt`. Of a truncated tar the last sample that could be read is
    left out too: it may lack a part.
    """
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    left_out = []
    suffixes = [suffix.removeprefix(".") for suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)]
    for tar in tars:
        try:
            with tar.open("rb") as file:  # a file, not a URL: WebDataset would also run commands named by one
                named = ({**member, "__url__": tar.name} for member in tar_file_iterator(file))  # pyright: ignore
                for number, sample in enumerate(group_by_keys(named)):
                    pixels = [suffix for suffix in suffixes if suffix in sample]
                    if not pixels:
                        left_out.append(LeftOut(tar, f"{sample['__key__']} has no video and no image"))
                        continue
                    path = into / f"{tar.stem}-{number:06d}.{pixels[0]}"  # keys may hold anything, folders too
                    path.write_bytes(sample[pixels[0]])
                    if CAPTION in sample:
                        path.with_suffix(".txt").write_bytes(sample[CAPTION])
        except (tarfile.TarError, EOFError, ValueError) as error:
            left_out.append(LeftOut(tar, f"truncated or damaged: only what comes well before is used ({error})"))
    return left_out
