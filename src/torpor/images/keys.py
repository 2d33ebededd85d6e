"""Build keys: digests over everything a build is made from, so that equal keys mean that nothing needs building. Debian's package versions are not part of
a key: an image stays as it is until its recipe changes or it is asked for anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torpor.images import initrd, recipes
from torpor.images.initrd import init_script
from torpor.images.recipes import Extras, TemplateRecipe

_HERE = Path(__file__).parent


def kernel_key() -> str:
    script = init_script(recipes.KERNEL_MODULES)
    return _key("kernel", recipes.KERNEL_RECIPE, recipes.KERNEL_SUITE, recipes.KERNEL_PACKAGES, script, recipes.COMMAND_LINE)


def runtime_key() -> str:
    return _key("runtime", recipes.RUNTIME_RECIPE, recipes.USERLAND_SUITE, recipes.RUNTIME_PACKAGES, recipes.PYTHON)


def agent_key(sources: Mapping[str, Path]) -> str:
    """`sources`: path on the agent disk -> file."""
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sources.items()}
    return _key("agent", recipes.AGENT_RECIPE, runtime_key(), digests, initrd.AGENT)


def template_key(recipe: TemplateRecipe, certificates: Mapping[str, bytes]) -> str:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in certificates.items()}
    parts = (recipe.name, recipe.user, recipe.home, recipe.packages, dict(recipe.files), recipes.NO_DOCS, recipe.disk_size)
    return _key("template", recipes.TEMPLATE_RECIPE, recipes.USERLAND_SUITE, *parts, digests, *_extras(recipe))


def _extras(recipe: TemplateRecipe) -> tuple[object, ...]:
    """Nothing for a template that has none, whose key so stays what it was."""
    if recipe.extras is None:
        return ()
    extras = recipe.extras
    contents = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in program(extras).items()}
    pins = hashlib.sha256(wheels(extras).read_bytes()).hexdigest()
    return (pins, contents, extras.left_out, extras.program_at, dict(extras.links), recipes.EXTRAS_RECIPE)


def wheels(extras: Extras) -> Path:
    """The file that pins."""
    return _HERE / extras.wheels


def program(extras: Extras) -> Mapping[str, Path]:
    """The program's files: name below its directory -> file."""
    found = (path for path in (_HERE / extras.program).rglob("*") if path.is_file() and path.suffix in (".py", ".js"))
    return {str(path.relative_to(_HERE / extras.program)): path for path in sorted(found)}


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
