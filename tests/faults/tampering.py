"""Ways to tamper with a registered model, for somebody who may write to the model store, and payloads that betray themselves."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import skops.io
import yaml


class Payload:
    """Code that leaves a trace when it runs: as source, as pickles, and as a skops archive."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker
        self.source = f"import os; os.mkdir({str(marker)!r})\n"
        self.pickle = pickle.dumps(Makes(marker))
        self.cloudpickle = cloudpickle.dumps(Makes(marker))
        self.gzip = gzip.compress(self.pickle)
        self.skops = skops.io.dumps(Wakes(marker))
        self.trusted = [f"{Wakes.__module__}.Wakes"]


class Makes:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


class Wakes:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).mkdir()


@dataclass
class Attack:
    """What an attacker with write access to the model store has at hand: ``into`` is the champion's folder."""

    into: Path
    other: Path
    outside: Path
    payload: Payload

    def write(self, name: str, content: bytes | str) -> None:
        path = self.into / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def outsider(self, content: bytes) -> Path:
        path = self.outside / "elsewhere"
        path.write_bytes(content)
        return path

    def edit(self, flavor: str, **entries: Any) -> None:
        mlmodel = yaml.safe_load((self.into / "MLmodel").read_text())
        mlmodel["flavors"][flavor].update(entries)
        self.write("MLmodel", yaml.safe_dump(mlmodel))

    def link(self, name: str, target: Path | str) -> None:
        (self.into / name).unlink(missing_ok=True)
        (self.into / name).symlink_to(target)

    def append(self, name: str, content: str) -> None:
        self.write(name, (self.into / name).read_text() + content)

    # The corpus: one method per way to tamper with a model.

    def flip_one_bit(self) -> None:
        content = bytearray((self.into / "model.skops").read_bytes())
        content[len(content) // 2] ^= 1
        self.write("model.skops", bytes(content))

    def truncate(self) -> None:
        self.write("model.skops", (self.into / "model.skops").read_bytes()[:-1])

    def append_to_the_archive(self) -> None:
        self.write("model.skops", (self.into / "model.skops").read_bytes() + b"\0")

    def swap_the_model_of_another_version(self) -> None:
        shutil.copy(self.other / "model.skops", self.into)

    def swap_all_files_of_another_version(self) -> None:
        shutil.copytree(self.other, self.into, dirs_exist_ok=True)

    def swap_the_reference(self) -> None:
        shutil.copy(self.other / "reference.parquet", self.into)

    def lower_the_baseline(self) -> None:
        text = (self.into / "profile.json").read_text()
        self.write("profile.json", text.replace('"rows": ', '"rows": 1'))

    def add_a_file(self) -> None:
        self.write("sitecustomize.py", self.payload.source)

    def add_a_file_that_looks_like_another(self) -> None:
        self.write("MLm\N{CYRILLIC SMALL LETTER O}del", self.payload.source)

    def add_a_folder_under_mlflows_own_name(self) -> None:
        self.write("registered_model_meta/evil.py", self.payload.source)

    def add_a_loader_with_code(self) -> None:
        self.write("code/evil_loader.py", self.payload.source)
        self.edit("python_function", loader_module="evil_loader", code="code")

    def add_code_alone(self) -> None:
        self.write("code/sklearn.py", self.payload.source)

    def point_out_of_the_folder(self) -> None:
        self.outsider(self.payload.pickle)
        self.edit("sklearn", pickled_model=os.path.relpath(self.outside / "elsewhere", self.into))

    def link_to_elsewhere(self) -> None:
        self.link("model.skops", self.outsider(self.payload.pickle))

    def link_to_equal_bytes_elsewhere(self) -> None:
        self.link("model.skops", self.outsider((self.into / "model.skops").read_bytes()))

    def link_to_a_neighbour(self) -> None:
        self.link("model.skops", "reference.parquet")

    def link_to_nothing(self) -> None:
        self.link("model.skops", "nowhere")

    def link_to_endless_zeros(self) -> None:
        self.link("profile.json", "/dev/zero")

    def link_folders_in_loops(self) -> None:
        self.link("a", ".")
        self.link("b", ".")

    def hard_link_to_another_version(self) -> None:
        (self.into / "model.skops").unlink()
        (self.into / "model.skops").hardlink_to(self.other / "model.skops")

    def put_a_pipe_in_place(self) -> None:
        (self.into / "profile.json").unlink()
        os.mkfifo(self.into / "profile.json")

    def put_a_pickle_in_place(self) -> None:
        self.write("model.skops", self.payload.pickle)

    def put_a_cloudpickle_in_place(self) -> None:
        self.write("model.skops", self.payload.cloudpickle)
        self.edit("sklearn", serialization_format="cloudpickle")

    def put_a_compressed_pickle_in_place(self) -> None:
        self.write("model.skops", self.payload.gzip)

    def widen_the_trusted_types(self) -> None:
        self.write("model.skops", self.payload.skops)
        self.edit("sklearn", skops_trusted_types=self.payload.trusted)

    def remove_a_file(self) -> None:
        (self.into / "python_env.yaml").unlink()

    def remove_everything(self) -> None:
        shutil.rmtree(self.into)

    def edit_the_requirements(self) -> None:
        self.append("requirements.txt", "evil==1.0\n")

    def edit_the_environment(self) -> None:
        self.append("python_env.yaml", "build_dependencies: [evil]\n")

    def add_a_conda_environment(self) -> None:
        self.write("conda.yaml", "dependencies: [pip: [evil]]\n")

    def plant_a_bomb_of_aliases(self) -> None:
        levels = "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
        self.write("MLmodel", f"- &a0 lol\n{levels}")

    def move_the_files_into_a_folder(self) -> None:
        files = list(self.into.iterdir())
        (self.into / "model").mkdir()
        for file in files:
            file.rename(self.into / "model" / file.name)

    def put_a_folder_in_place(self) -> None:
        (self.into / "model.skops").unlink()
        self.write("model.skops/__init__.py", self.payload.source)

    def hide_a_file_in_upper_case(self) -> None:
        (self.into / "profile.json").rename(self.into / "PROFILE.json")


HELP = {"write", "outsider", "edit", "link", "append"}
CORPUS = [
    name for name, part in vars(Attack).items() if callable(part) and name not in HELP and not name.startswith("_")
]


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Every entry below a folder with its kind, and its content or where it links to."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        text = path.read_bytes() if stat.S_ISREG(facts.st_mode) else path.readlink() if path.is_symlink() else b""
        found[str(path.relative_to(root))] = (stat.S_IFMT(facts.st_mode), text)
    return found
