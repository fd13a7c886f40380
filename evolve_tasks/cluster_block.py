"""Which `DaskCluster` block a flow run uses: a name, or a template resolved as it starts."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.settings.context import get_current_settings
from prefect.types.names import raise_on_name_alphanumeric_dashes_only
from prefect.utilities.annotations import NotSet
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.collections import get_from_dict
from prefect.utilities.templating import (
    Placeholder,
    PlaceholderType,
    apply_values,
    find_placeholders,
    resolve_variables,
)

from evolve_tasks.blocks import DaskCluster
from evolve_tasks.errors import InvalidInput
from evolve_tasks.naming import error_text, short_repr

_FORMS: Final = (
    '"prod", "{{ parameters.NAME }}", "{{ prefect.variables.NAME }}" or "{{ $NAME }}" '
    "(an environment variable)"
)
_PARAMETERS: Final = "parameters."
SHOWN = 20  # blocks that a message names


def refuse_wrong_template(template: Any) -> None:
    """Check what can be checked before there is a flow run.

    Args:
        template: what was given as `cluster_block`.

    Raises:
        InvalidInput: it can be no name of a block and no template that gives one.
    """
    if not isinstance(template, str):
        raise InvalidInput(
            f"cluster_block={short_repr(template)} is of type {type(template).__name__}: give the "
            f"name of a DaskCluster block, as {_FORMS}"
        )
    placeholders = find_placeholders(template)
    for placeholder in placeholders:
        if placeholder.type is PlaceholderType.BLOCK_DOCUMENT or (
            placeholder.type is PlaceholderType.STANDARD
            and not placeholder.name.startswith(_PARAMETERS)
        ):
            raise InvalidInput(
                f"cluster_block={template!r}: {placeholder.full_match} is nothing that the name of "
                f"a block can come from; give {_FORMS}"
            )
    if not placeholders:
        _refuse_wrong_name(template, template.strip())


def block_name(template: str) -> str:
    """Resolve a template in the flow run around the caller, with Prefect's own templating.

    Args:
        template: what was given as `cluster_block`.

    Returns:
        Name of a block; empty where the template gives none, as where an environment variable or
        a Prefect variable is not set.

    Raises:
        InvalidInput: it names a parameter that the flow run does not have, or gives something
            that is no name.
    """
    resolved: Any = template
    placeholders = find_placeholders(template)
    if any(placeholder.type is PlaceholderType.VARIABLE for placeholder in placeholders):
        resolved = run_coro_as_sync(resolve_variables(resolved))
    if isinstance(resolved, str):
        values = {"parameters": _parameters(template, placeholders)}
        resolved = apply_values(resolved, values)
    if isinstance(resolved, Enum):
        resolved = resolved.value
    if resolved is None:
        return ""
    if not isinstance(resolved, str):
        raise InvalidInput(
            f"cluster_block={template!r} gives {short_repr(resolved)} of type "
            f"{type(resolved).__name__}: it has to give the name of a DaskCluster block"
        )
    name = resolved.strip()
    _refuse_wrong_name(template, name)
    return name


def load_block(template: str, name: str) -> DaskCluster:
    """Load a block from the API of the flow run.

    Args:
        template: what was given as `cluster_block`; for messages.
        name: what it gave.

    Returns:
        The block.

    Raises:
        InvalidInput: there is no such block, or what it holds cannot be used.
    """
    told = f"cluster_block={template!r}" + ("" if template == name else f" gives {name!r}")
    slug = DaskCluster.get_block_type_slug()
    with get_client(sync_client=True) as client:
        try:
            document = client.read_block_document_by_name(name=name, block_type_slug=slug)
        except ObjectNotFound as error:
            found = _existing(client, slug)
            raise InvalidInput(
                f"{told}: there is no DaskCluster block of that name at "
                f"{get_current_settings().api.url or 'this API'}; {found}; make it with "
                f'DaskCluster(address="tcp://…").save({name!r}) in Python, or in the Prefect UI '
                "under Blocks (after `prefect block register -m evolve_tasks`)"
            ) from error
    try:
        return DaskCluster._load_from_block_document(document)
    except RuntimeError as error:
        # Prefect's own message says neither which field nor why; its cause does.
        raise InvalidInput(
            f"{told}: the block cannot be used ({error_text(error.__cause__ or error)}); correct "
            f"it in the Prefect UI, or with DaskCluster(…).save({name!r}, overwrite=True)"
        ) from error


def _existing(client: Any, slug: str) -> str:
    try:
        documents = client.read_block_documents_by_type(
            slug, limit=SHOWN + 1, include_secrets=False
        )
    except ObjectNotFound:  # no block of this type was ever registered
        documents = []
    names = sorted(document.name for document in documents if document.name)
    if not names:
        return "there is none at all"
    more = " and more" if len(names) > SHOWN else ""
    return f"there are {', '.join(map(repr, names[:SHOWN]))}{more}"


def _parameters(template: str, placeholders: set[Placeholder]) -> dict[str, Any]:
    wanted = [one.name for one in placeholders if one.type is PlaceholderType.STANDARD]
    if not wanted:
        return {}
    context = FlowRunContext.get()
    if context is None:
        raise InvalidInput(
            f"cluster_block={template!r} takes a parameter of the flow run, and there is none "
            "here: use the runner in a flow"
        )
    parameters = context.parameters or {}
    for name in wanted:
        if get_from_dict({"parameters": parameters}, name, NotSet) is NotSet:
            raise InvalidInput(
                f"cluster_block={template!r}: the flow run has no {name}; its parameters are "
                f"{', '.join(parameters) or 'none'}"
            )
    return parameters


def _refuse_wrong_name(template: str, name: str) -> None:
    try:
        raise_on_name_alphanumeric_dashes_only(name)
    except ValueError as error:
        gives = "" if template == name else f" gives {short_repr(name)}, which"
        raise InvalidInput(
            f"cluster_block={template!r}{gives} is no name of a block (lower case letters, digits "
            f"and dashes) and no template: give {_FORMS}"
        ) from error
