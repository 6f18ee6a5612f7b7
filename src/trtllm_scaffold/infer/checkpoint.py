"""Infers the checkpoint axis: name, shape and layout of every stored tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.effective import build_meta_model
from trtllm_scaffold.infer.expert_names import expert_templates, own_templates, with_more_experts
from trtllm_scaffold.infer.header import explain_header
from trtllm_scaffold.infer.layer_names import Folded, LayerNames, fold_number, fold_shapes
from trtllm_scaffold.infer.roles import RoleLayout
from trtllm_scaffold.infer.stored import Piece, Stored, match_stored, saved_tensors
from trtllm_scaffold.sources.checkpoint import CheckpointHeader
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec.checkpoint import CheckpointSpec, TensorSpec
from trtllm_scaffold.spec.evidence import Evidence

Shapes = Mapping[str, tuple[int, ...]]

_HINT = "renamed, transposed, fused and split tensors of the known roles are expressed"


def infer_checkpoint(
    tiny_model: Any,
    roles: Mapping[str, RoleLayout],
    real_config: Any,
    classes: HFClasses,
    header: CheckpointHeader | None,
) -> tuple[CheckpointSpec, tuple[Evidence, ...]]:
    """Return what a checkpoint stores, with names as HF's `save_pretrained` writes them.

    Args:
        tiny_model: The traced model, every parameter random. It is saved to a temporary folder.
        roles: What each of its parameters (and stored buffers) holds, by module name with
            ``{i}`` for the layer.
        real_config: The configuration object of the real size.
        classes: The model's HF classes.
        header: What the real checkpoint stores, where there is one.

    Raises:
        Refused: A stored tensor has no role or a form without a label, or layers differ.
        InputError: The header disagrees with the class in a name or a shape.
    """
    stored = match_stored(tiny_model, saved_tensors(tiny_model))
    real_model = build_meta_model(real_config, classes)
    parameters = {name: tuple(p.shape) for name, p in real_model.named_parameters()}
    buffers = {name: tuple(b.shape) for name, b in real_model.named_buffers()}
    kept = {name: shape for name, shape in buffers.items() if name in real_model.state_dict()}
    modules = LayerNames.of(parameters)
    folded = fold_shapes({**parameters, **kept}, modules)
    shapes = with_more_experts(folded.shapes, roles)
    names = LayerNames.of(item.name for item in stored)
    needed, dropped = _split(stored, roles, names, modules)
    tensors = _tensors(needed, roles, names, modules, replace(folded, shapes=shapes))
    prefix = f"{getattr(real_model, 'base_model_prefix', '')}."
    base_prefix = prefix if any(t.name.startswith(prefix) for t in tensors) else ""
    spec = CheckpointSpec(tensors=tensors, dropped=dropped, base_prefix=base_prefix)
    evidence = [
        Evidence(
            f"checkpoint.{t.name}", "trace", f"save_pretrained, {_where(t)}", str(list(t.shape))
        )
        for t in tensors
    ]
    if header is not None:
        counts = _counts(needed, roles, names, modules, shapes)
        more_dropped, more = explain_header(spec, folded.layers, counts, header, real_model)
        spec = replace(spec, dropped=tuple({**dict(dropped), **dict(more_dropped)}.items()))
        evidence.extend(more)
    return spec, tuple(evidence)


def _where(tensor: TensorSpec) -> str:
    return f"{tensor.layout} {' '.join(tensor.roles)}" + (" transposed" * tensor.transposed)


def _split(
    stored: tuple[Stored, ...],
    roles: Mapping[str, RoleLayout],
    names: LayerNames,
    modules: LayerNames,
) -> tuple[tuple[Stored, ...], tuple[tuple[str, str], ...]]:
    """Part the stored tensors into those with a role, and (template, reason) of the others."""
    needed: list[Stored] = []
    dropped: dict[str, str] = {}
    for item in stored:
        role = roles.get(modules.fold(item.buffer)[0]) if item.buffer else None
        if role is not None and role.dropped:
            dropped[names.fold(item.name)[0]] = role.dropped
        else:
            needed.append(item)
    return tuple(needed), tuple(dropped.items())


def _tensors(
    stored: tuple[Stored, ...],
    roles: Mapping[str, RoleLayout],
    names: LayerNames,
    modules: LayerNames,
    folded: Folded,
) -> tuple[TensorSpec, ...]:
    """Return one TensorSpec per stored template, all layers agreeing."""
    found: dict[str, TensorSpec] = {}
    templates = _templates(stored, roles, names, modules)
    for item in stored:
        name, index = names.fold(item.name)
        template = templates.get(name, name)
        role = _role(item, roles, modules)
        sources = [item.buffer] if item.buffer else [piece.parameter for piece in item.pieces]
        tensor = TensorSpec(
            name=template,
            shape=_real_shape(item, modules, folded.shapes),
            roles=role.roles,
            layout=role.layout,
            transposed=role.transposed,
            per_layer=index is not None,
            blocks=role.blocks,
            per_head=role.head is not None,
            experts=role.experts,
            only_layers=folded.partial.get(modules.fold(sources[0])[0], ()),
            shapes=_uneven(item, role.roles, sources, modules, folded),
        )
        other = found.setdefault(template, tensor)
        if other != tensor:
            raise Refused(
                "checkpoint",
                f"layers differ in what {template} holds: {other.roles} and {tensor.roles}",
                where="save_pretrained of a tiny model",
                hint="models whose layers store the same tensors work",
            )
    return tuple(found.values())


def _uneven(
    item: Stored,
    roles: tuple[str, ...],
    sources: list[str],
    modules: LayerNames,
    folded: Folded,
) -> tuple[tuple[int, ...], ...]:
    """Return the shape in each layer, where layers differ in it."""
    found = [folded.uneven.get(modules.fold(source)[0], ()) for source in sources]
    if not any(found):
        return ()
    whole = len(sources) == 1 and (not item.pieces or item.pieces[0].is_whole)
    if not whole or not all(name.startswith("attention.") for name in roles):
        template = modules.fold(sources[0])[0]
        first, second = list(dict.fromkeys(next(filter(None, found))))[:2]
        raise Refused(
            "checkpoint",
            f"layers differ in the shape of {template}: {list(first)} and {list(second)}",
            where="the model's parameters",
            hint="layers may differ in their heads alone, where q, k and v are stored apart",
        )
    return tuple(shape[::-1] if item.transposed else shape for shape in found[0])


def _templates(
    stored: tuple[Stored, ...],
    roles: Mapping[str, RoleLayout],
    names: LayerNames,
    modules: LayerNames,
) -> dict[str, str]:
    """Return the template of each stored name that is of one head or one expert.

    It has ``{j}`` for the head, or ``{e}`` for the expert.
    """
    found: dict[str, str] = {}
    experts: list[tuple[tuple[str, ...], int, str]] = []
    for item in stored:
        role, (name, _) = _role(item, roles, modules), names.fold(item.name)
        if role.head is not None:
            found[name] = fold_number(name, role.head, "{j}")
        elif role.expert is not None:
            experts.append((role.roles, role.expert, name))
    return {**found, **expert_templates(experts)}


def _counts(
    stored: tuple[Stored, ...],
    roles: Mapping[str, RoleLayout],
    names: LayerNames,
    modules: LayerNames,
    shapes: Shapes,
) -> dict[str, int]:
    """Return how many heads or experts of the real model each numbered template stands for."""
    counts: dict[str, int] = {}
    templates = _templates(stored, roles, names, modules)
    own = own_templates(roles)
    for item in stored:
        template = templates.get(names.fold(item.name)[0])
        if template is None:
            continue
        source = modules.fold(item.pieces[0].parameter)[0]
        if item.pieces[0].of_experts:
            counts[template] = shapes[source][0]
            continue
        before, behind = re.split(r"\{[je]\}", own[source])
        counts[template] = sum(
            name.startswith(before)
            and name.endswith(behind)
            and name[len(before) : len(name) - len(behind)].isdigit()
            for name in shapes
        )
    return counts


def _role(item: Stored, roles: Mapping[str, RoleLayout], modules: LayerNames) -> RoleLayout:
    """Return what a stored tensor holds, from what its parameters hold."""
    sources = [item.buffer] if item.buffer else [piece.parameter for piece in item.pieces]
    parts = []
    for source in sources:
        template, _ = modules.fold(source)
        if template not in roles:
            raise Refused(
                "checkpoint",
                f"{item.name} is stored, but no part of the traced forward explains {source}",
                where="save_pretrained of a tiny model",
                hint=_HINT,
            )
        parts.append(roles[template])
    if item.pieces and item.pieces[0].of_experts:
        return _expert_role(item, item.pieces[0], parts[0])
    if item.buffer or (len(item.pieces) == 1 and item.pieces[0].is_whole):
        return replace(parts[0], transposed=parts[0].transposed != item.transposed)
    split = [_part(piece, part) for piece, part in zip(item.pieces, parts, strict=True)]
    if any(part is None for part in split):
        raise Refused(
            "checkpoint",
            f"{item.name} mixes rows of {', '.join(dict.fromkeys(sources))}",
            where="save_pretrained of a tiny model",
            hint=_HINT,
        )
    merged = tuple(role for part in split if part for role in part)
    return RoleLayout(merged, "rows" if len(merged) > 1 else "whole")


def _expert_role(item: Stored, piece: Piece, role: RoleLayout) -> RoleLayout:
    """Return what a tensor holds that is cut out of the experts of one parameter."""
    own = replace(role, experts="stacked" if piece.expert is None else "one", expert=piece.expert)
    if role.experts == "stacked" and piece.is_whole and not piece.turned:
        return replace(own, transposed=role.transposed != item.transposed)
    by_part = role.layout == "rows" and piece.count == len(role.roles)
    if role.experts == "stacked" and by_part and piece.turned == role.transposed:
        kept = (role.roles[piece.index],)
        return replace(own, roles=kept, layout="whole", transposed=item.transposed)
    raise Refused(
        "checkpoint",
        f"{item.name} mixes parts of the experts in {piece.parameter}",
        where="save_pretrained of a tiny model",
        hint=_HINT,
    )


def _part(piece: Piece, role: RoleLayout) -> tuple[str, ...] | None:
    """Return the roles of a piece of a parameter, or None where it cuts through one."""
    if role.transposed or role.layout not in ("whole", "rows"):
        return None
    if piece.is_whole:
        return role.roles
    if role.layout == "rows" and piece.count == len(role.roles):
        return (role.roles[piece.index],)
    return None


def _real_shape(item: Stored, modules: LayerNames, shapes: Shapes) -> tuple[int, ...]:
    """Return the stored shape at the real size."""
    if item.buffer:
        return _shape(item.buffer, item, modules, shapes)
    real = [_shape(piece.parameter, item, modules, shapes) for piece in item.pieces]
    if item.pieces[0].of_experts:
        return _expert_shape(item, item.pieces[0], real[0])
    if item.transposed:
        return real[0][::-1]
    if item.pieces[0].is_whole and len(item.pieces) == 1:
        return real[0]
    rows = 0
    for piece, shape in zip(item.pieces, real, strict=True):
        equal = piece.rows == piece.count * (piece.stop - piece.start)
        if not equal or shape[0] % piece.count:
            raise Refused(
                "checkpoint",
                f"{item.name} is an uneven share of {piece.parameter}",
                where="save_pretrained of a tiny model",
                hint=_HINT,
            )
        rows += shape[0] // piece.count
    return (rows, *real[0][1:])


def _expert_shape(item: Stored, piece: Piece, real: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a cut out of the experts of a parameter [experts, ...]."""
    experts, *inner = real
    inner = inner[::-1] if piece.turned else inner
    inner[0] //= piece.count
    inner = inner[::-1] if item.transposed else inner
    return tuple(inner) if piece.expert is not None else (experts, *inner)


def _shape(source: str, item: Stored, modules: LayerNames, shapes: Shapes) -> tuple[int, ...]:
    template, _ = modules.fold(source)
    if template not in shapes:
        raise Refused(
            "checkpoint",
            f"{item.name} is in the tiny model but not in the real one",
            where="the model at its real size on the meta device",
        )
    return shapes[template]
