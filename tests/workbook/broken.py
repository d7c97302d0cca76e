"""Ways to break a good sample: each changes its folder, and returns more parameters of the notebook where it has some."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hyperspy.api as hs
import numpy as np
import yaml

Break = Callable[[Path], dict | None]


def text(content: str | bytes) -> Break:
    """Another sample.yaml."""
    return lambda sample: nothing_more((sample / "sample.yaml").write_bytes(content if isinstance(content, bytes) else content.encode()))


def nothing_more(_: Any) -> None:
    return None


def changed(content: dict, *path_and_value: Any) -> dict:
    """A copy of a sample's keys and values with one value set, or removed where it is `...`."""
    *path, last, value = path_and_value
    content = copy.deepcopy(content)
    part = content
    for key in path:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return content


def said(*path_and_value: Any) -> Break:
    """One value of sample.yaml set, or removed where it is `...`."""

    def change(sample: Path) -> None:
        content = changed(yaml.safe_load((sample / "sample.yaml").read_text()), *path_and_value)
        (sample / "sample.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))

    return change


def of(kind: str, key: str, value: Any) -> Break:
    return said("acquisitions", kind, key, value)


def frames(file: str, make: Callable[[], np.ndarray], units: str = "nm", scale: float = 0.02) -> Break:
    """Another recording in a file of the sample."""

    def change(sample: Path) -> None:
        (sample / file).unlink(missing_ok=True)
        signal = hs.signals.Signal2D(make())
        for axis in signal.axes_manager.signal_axes:
            axis.scale, axis.units = scale, units
        signal.save(sample / file, overwrite=True)

    return change


def cut(file: str, share: float) -> Break:
    def change(sample: Path) -> None:
        whole = (sample / file).read_bytes()
        (sample / file).write_bytes(whole[: int(share * len(whole))])

    return change


def flipped(content: bytes, seed: int, count: int) -> bytes:
    """Bytes with some bits the other way round, half of them in the first kilobyte, where headers are."""
    rng = np.random.default_rng(seed)
    out = np.frombuffer(content, np.uint8).copy()
    places = np.concatenate([rng.integers(0, min(1024, len(out)), count // 2), rng.integers(0, len(out), count - count // 2)])
    out[places] ^= (1 << rng.integers(0, 8, count)).astype(np.uint8)
    return out.tobytes()


def flip(file: str, seed: int, count: int = 40) -> Break:
    return lambda sample: nothing_more((sample / file).write_bytes(flipped((sample / file).read_bytes(), seed, count)))


def replaced(file: str, content: bytes | str) -> Break:
    return lambda sample: nothing_more((sample / file).write_bytes(content if isinstance(content, bytes) else content.encode()))


def with_parameters(**parameters: Any) -> Break:
    return lambda sample: parameters


def both(*breaks: Break) -> Break:
    def change(sample: Path) -> dict:
        return {name: value for each in breaks for name, value in (each(sample) or {}).items()}

    return change


def in_results(file: str, content: bytes | str | Callable[[bytes], bytes]) -> Break:
    """Another file in the sample's results; a function gets what is there."""

    def change(sample: Path) -> None:
        path = sample.parents[1] / "results" / sample.name / file
        made = content(path.read_bytes()) if callable(content) else content
        path.write_bytes(made.encode() if isinstance(made, str) else made)

    return change


def result_with(step: str, **values: Any) -> Break:
    """Values of a result's JSON changed, or taken out where they are `...`."""

    def change(whole: bytes) -> bytes:
        content = {k: v for k, v in (json.loads(whole) | values).items() if v is not ...}
        return json.dumps(content).encode()

    return in_results(f"{step}.json", change)


def result_without(file: str) -> Break:
    return lambda sample: (sample.parents[1] / "results" / sample.name / file).unlink()


def by_hand(content: str) -> Break:
    return in_results("manual.yaml", content)


# --- hostile recordings: each would leave a mark where code ran, or show a file that is not the sample's -------------


MARK = "code_ran"
SECRET = "outside.hspy"


class _Marking:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder / MARK),)


def outside(sample: Path) -> Path:
    """The folder of all samples, which is not the sample's own."""
    return sample.parents[1]


def in_hspy(file: str, change: Callable[[h5py.Group, Path], None]) -> Break:
    """A change in the group of a .hspy file's signal."""

    def act(sample: Path) -> None:
        with h5py.File(sample / file, "r+") as opened:
            change(next(iter(opened["Experiments"].values())), outside(sample))

    return act


def name_a_package(group: h5py.Group, folder: Path) -> None:
    group.attrs["package"] = "this"  # which prints when it is imported


def axis_by_formula(group: h5py.Group, folder: Path) -> None:
    attributes = group["axis-0"].attrs
    for name in ("_type", "scale", "offset"):
        attributes.pop(name, None)
    attributes["expression"] = f"__import__('os').mkdir('{folder / MARK}') or x"


def link_outside(group: h5py.Group, folder: Path) -> None:
    with h5py.File(folder / SECRET, "w") as file:
        file.create_dataset("data", data=np.ones((64, 64), np.uint16), chunks=(64, 64))
    del group["data"]
    group["data"] = h5py.ExternalLink(f"../../{SECRET}", "data")


def virtual_outside(group: h5py.Group, folder: Path) -> None:
    link_outside(group, folder)
    del group["data"]
    layout = h5py.VirtualLayout(shape=(64, 64), dtype=np.uint16)
    layout[:] = h5py.VirtualSource(str(folder / SECRET), "data", shape=(64, 64))
    group.create_virtual_dataset("data", layout)


def raw_outside(group: h5py.Group, folder: Path) -> None:
    (folder / "raw").write_bytes(bytes(8192))
    del group["data"]
    group.create_dataset("data", shape=(64, 64), dtype=np.uint16, external=[(str(folder / "raw"), 0, 8192)])


def announce(shape: tuple[int, ...], chunks: tuple[int, ...] | None = None, dtype: str = "u2", **options: Any) -> Callable:
    def change(group: h5py.Group, _: Path) -> None:
        del group["data"]
        group.create_dataset("data", shape=shape, dtype=dtype, chunks=chunks or tuple(min(n, 64) for n in shape), **options)

    return change


def as_hspy(kind: str, shape: tuple[int, ...], change: Callable[[h5py.Group, Path], None]) -> Break:
    """A recording of ones in ``hostile.hspy``, changed."""
    made = both(frames("hostile.hspy", lambda: np.ones(shape, np.uint16)), of(kind, "file", "hostile.hspy"))
    return both(made, in_hspy("hostile.hspy", change))


def as_zspy(change: Callable[[Path, Any], None]) -> Break:
    """An image in a .zspy folder, changed."""

    def act(sample: Path) -> None:
        import zarr

        frames("hostile.zspy", lambda: np.ones((64, 64), np.uint16))(sample)
        of("haadf", "file", "hostile.zspy")(sample)
        change(sample, next(iter(zarr.open(str(sample / "hostile.zspy"))["Experiments"].groups()))[1])
        zarr.consolidate_metadata(str(sample / "hostile.zspy"))

    return act


def pickled_chunks(sample: Path, group: Any) -> None:
    import numcodecs

    del group["data"]
    values = np.full((4, 4), _Marking(outside(sample)), dtype=object)
    group.create_dataset("data", data=values, dtype=object, object_codec=numcodecs.Pickle())
    shutil.rmtree(outside(sample) / MARK, ignore_errors=True)


def chunk_is_a_link(sample: Path, group: Any) -> None:
    chunk = next(p for p in (sample / "hostile.zspy").rglob("*") if p.is_file() and p.name == "0")
    shutil.move(chunk, outside(sample) / "chunk")
    chunk.symlink_to(outside(sample) / "chunk")


def chunk_is_junk(sample: Path, group: Any) -> None:
    chunk = next(p for p in (sample / "hostile.zspy").rglob("data/**/*") if p.is_file() and not p.name.startswith("."))
    chunk.write_bytes(b"junk" * 7)


def pickled_npy(sample: Path) -> None:
    values = np.full((4, 4), _Marking(outside(sample)), dtype=object)
    np.save(sample / "pickled.npy", values, allow_pickle=True)
    of("haadf", "file", "pickled.npy")(sample)


def fifo(sample: Path) -> None:
    (sample / "haadf.tif").unlink()
    os.mkfifo(sample / "haadf.tif")


def folder_for_a_file(sample: Path) -> None:
    (sample / "haadf.tif").unlink()
    (sample / "haadf.tif").mkdir()


def link(name: str, target: str) -> Break:
    def change(sample: Path) -> None:
        (sample / name).unlink(missing_ok=True)
        (sample / name).symlink_to(target)

    return change


def companion_link(sample: Path) -> None:
    """A file that a reader opens beside the one it is given."""
    (outside(sample) / "x_1.ser").write_bytes(b"not the sample's")
    (sample / "x.emi").write_bytes(b"<ObjectInfo></ObjectInfo>")
    (sample / "x_1.ser").symlink_to(outside(sample) / "x_1.ser")
    of("haadf", "file", "x.emi")(sample)


def pickled_npz(whole: bytes) -> bytes:
    import io

    with np.load(io.BytesIO(whole)) as arrays:
        content = dict(arrays)
    packed = io.BytesIO()
    np.savez(packed, **content | {"strain": np.array([_Marking(Path("/tmp"))], dtype=object)}, allow_pickle=True)
    return packed.getvalue()


def lacking(whole: bytes) -> bytes:
    import io

    kept = io.BytesIO(whole)
    with h5py.File(kept, "r+") as file:
        del file["crystal_map/data/second_share"]
    return kept.getvalue()


def phase(content: str) -> Break:
    """A crystal structure beside the data, and a sample that names it."""

    def change(sample: Path) -> None:
        (sample.parent / "phases").mkdir()
        (sample.parent / "phases" / "odd.cif").write_text(content)
        of("interface", "phases", ["layered", "odd"])(sample)

    return change


CELL = (
    "data_x\n_cell_length_a {a}\n_cell_length_b {a}\n_cell_length_c {a}\n_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
)
ATOM = "loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nNi1 {x} 0 0\n"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> [x](javascript:alert(3)) $\\frac{ =1+1 \"quoted\" 'ü'"


def random_counts(shape: tuple[int, ...], mean: float = 20.0) -> Callable[[], np.ndarray]:
    return lambda: np.random.default_rng(1).poisson(mean, shape).astype(np.uint16)


def with_nan(shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        values = random_counts(shape)().astype(np.float32)
        values[..., 3, 3] = np.nan
        return values

    return make


def odd_names(sample: Path) -> None:
    for kind, name in (("haadf", "größe [1] 'quoted' & <b>.tif"), ("interface", "a*?;$(touch x).tif"), ("ped", "-rf ped.hspy")):
        content = yaml.safe_load((sample / "sample.yaml").read_text())
        (sample / content["acquisitions"][kind]["file"]).rename(sample / name)
        of(kind, "file", name)(sample)
