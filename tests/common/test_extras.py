"""What a message for a missing extra tells to install."""

from soho_fast.common import extras


def test_an_extra_is_installed_of_a_clone_or_of_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "_PACKAGE", tmp_path / "a clone" / "soho_fast")
    assert extras.install_command("train") == 'pip install "soho_fast[train]"'
    (tmp_path / "a clone").mkdir()
    (tmp_path / "a clone" / "pyproject.toml").touch()
    assert extras.install_command("train") == f"pip install -e '{tmp_path}/a clone[train]'"
