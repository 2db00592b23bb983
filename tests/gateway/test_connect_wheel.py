"""The wheel that is made of what runs."""

import base64
import csv
import hashlib
import io
import zipfile

from gateway.connect.wheel import Wheel, running, wheel_of

METADATA = """\
Metadata-Version: 2.4
Name: sluicegate
Version: 0.0.1
Requires-Dist: rich>=15
Requires-Dist: xllamacpp>=1; extra == 'embedded'

Version: of the readme
"""


def archive(wheel: Wheel) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(wheel.content))


def test_the_same_files_are_the_same_wheel() -> None:
    one, two = (wheel_of("0.2.0", {"gateway/a.py": b"1"}, {"METADATA": METADATA}) for _ in range(2))
    assert (one.content, one.name) == (two.content, "sluicegate-0.2.0-py3-none-any.whl")
    assert wheel_of("0.2.0", {"gateway/a.py": b"2"}, {"METADATA": METADATA}).digest != one.digest
    assert one.requirements == ("rich>=15", "xllamacpp>=1; extra == 'embedded'")
    text = archive(one).read("sluicegate-0.2.0.dist-info/METADATA").decode()
    assert "Version: 0.2.0\n" in text and text.endswith("\n\nVersion: of the readme\n")


def test_its_record_is_right() -> None:
    with archive(running()) as wheel:
        (record,) = [name for name in wheel.namelist() if name.endswith("/RECORD")]
        lines = list(csv.reader(io.StringIO(wheel.read(record).decode())))
        assert [line[0] for line in lines] == wheel.namelist()
        assert lines[-1] == [record, "", ""]
        for name, digest, size in lines[:-1]:
            content = wheel.read(name)
            told = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={told}", str(len(content))), name


def test_it_has_all_that_an_installation_needs() -> None:
    wheel = running()
    with archive(wheel) as opened:
        names = set(opened.namelist())
    needed = {
        "gateway/cli.py", "gateway/connect/manage.sh", "gateway/server-openapi.json", "orchestrator/app.py",
        "orchestrator/data/diagnoses.yaml", "orchestrator/builtin_recipes/base.sh.j2",
        "orchestrator/builtin_recipes/inference/vllm-single-node/recipe.yaml",
        f"sluicegate-{wheel.version}.dist-info/entry_points.txt", f"sluicegate-{wheel.version}.dist-info/WHEEL",
    }  # fmt: skip
    assert needed <= names
    assert not [name for name in names if name.endswith((".pyc", ".so")) or "__pycache__" in name]
    assert any(text.startswith("asyncssh") for text in wheel.requirements)
