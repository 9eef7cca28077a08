"""Learning rates that fall from the last layer to the first, as BEiT and MAE fine-tune."""

import re

BLOCK = re.compile(r"^(?:.*\.)?(?:blocks|layer\d+|layers|stages\.\d+\.blocks|stages)\.\d+(?=\.)")


def layer_ids(model):
    """The depth of each parameter, and the depth of the head.

    0 for all that comes before the first block (class token, positions, patch embedding, stem),
    i + 1 for block i, and the number of blocks + 1 for all after the last one (norm, head).

    Returns:
        ({name of the parameter: depth}, depth of the head).

    Source:
        MAE, `util/lr_decay.py`. timm gives the norm after the last block that block's depth.
    """
    blocks = {}  # name of the block -> depth, in their order
    for name, _ in model.named_parameters():
        found = BLOCK.match(name)
        if found:
            blocks.setdefault(found[0], len(blocks) + 1)
    head = len(blocks) + 1
    ids, is_past = {}, False
    for name, _ in model.named_parameters():
        found = BLOCK.match(name)
        is_past = is_past or bool(found)
        ids[name] = blocks[found[0]] if found else head if is_past or not blocks else 0
    return ids, head


def decayed_groups(model, weight_decay, layer_decay):
    """Parameter groups with lr_scale = layer_decay ** (depth of the head - depth).

    Tensors of one dimension have no weight decay. Parameters without gradient are left out.

    Example:
        >>> import timm
        >>> model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
        >>> scales = {g["depth"]: g["lr_scale"] for g in decayed_groups(model, 0.05, 0.75)}
        >>> round(scales[0], 4), scales[12], scales[13]
        (0.0238, 0.75, 1.0)
    """
    ids, head = layer_ids(model)
    groups = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            depth, is_flat = ids[name], value.ndim <= 1
            group = groups.setdefault((depth, is_flat), {
                "params": [], "depth": depth, "lr_scale": layer_decay ** (head - depth),
                "weight_decay": 0.0 if is_flat else weight_decay,
            })  # fmt: skip
            group["params"].append(value)
    return list(groups.values())
