"""Causal attention over packed sequences without padding waste and without flash-attention.

Linear layers, norms and the LM head see N packed tokens. Attention alone gathers the sequences into a few
right-padded blocks of similar length and scatters the result back. Right padding needs no mask: a causal
query never looks at a later key. Sequences that are trees (answer_trees.py) say who sees whom, and a mask is made
of it on the device.

Used by the learner and the scoring replicas on CPU and GPU alike, through transformers' attention interface:
whoever loads a model registers `packed_attention` and `no_attention_mask` there under the name
`PACKED_ATTENTION` and passes `packed_layout=PackedLayout.build(...)` to the model's forward pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

PACKED_ATTENTION = "credence_packed"

# A block ends where its padding would exceed this share of the block's cells.
MAX_PADDING_SHARE = 0.15
# Below this many cells, one more call costs more than the padding it saves.
MIN_BLOCK_CELLS = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TreeVectors:
    """Who sees whom where each sequence is a trunk with branches behind it; int64[N], sequences end to end.

    A token sees the first `limits` tokens of its trunk; and of its own branch, up to itself, the tokens that belong
    to no answer and those of its own answer.
    """

    limits: Tensor
    steps: Tensor  # branch of the token; -1 in the trunk
    answers: Tensor  # answer of the token in its branch; -1: of none

    def mask(self, gather: Tensor, *, is_token: Tensor) -> Tensor:
        """bool[B_c, 1, L_c, L_c], query x key, of a block with cells `gather` [B_c, L_c], on that device.

        Padding asks as its sequence's last token does, and is seen by none.
        """
        limits, steps, answers = (
            vector.to(gather.device)[gather] for vector in (self.limits, self.steps, self.answers)
        )
        key = torch.arange(gather.shape[1], device=gather.device)
        in_trunk = (steps < 0)[:, None, :]
        same_branch = (steps[:, :, None] == steps[:, None, :]) & ~in_trunk & (key <= key[:, None])
        same_answer = (answers < 0)[:, None, :] | (answers[:, :, None] == answers[:, None, :])
        seen = (in_trunk & (key < limits[:, :, None])) | (same_branch & same_answer)
        return (seen & is_token[:, None, :])[:, None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBlock:
    """B_c sequences of similar length, right-padded to L_c."""

    gather: Tensor  # int64[B_c * L_c], packed position of each cell; padding repeats the sequence's last token
    num_sequences: int  # B_c
    max_length: int  # L_c
    mask: Tensor | None = None  # bool[B_c, 1, L_c, L_c], query x key; None: causal


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedLayout:
    """Where the sequences of one micro-batch lie; the same for all layers."""

    blocks: tuple[PackedBlock, ...]
    scatter: Tensor  # int64[N], cell (blocks end to end) of each packed token
    max_length: int  # positions of the longest sequence

    @classmethod
    def build(
        cls,
        sequence_starts: Tensor,
        *,
        device: torch.device,
        trees: TreeVectors | None = None,
        max_position: int | None = None,
    ) -> "PackedLayout":
        """Groups sequences by length into blocks. `sequence_starts` int[B+1] on the CPU; tensors land on `device`.

        `trees`: who sees whom; None: all are causal. With trees, `max_position` is the largest position id, which no
        longer is the length less 1.
        """
        starts = sequence_starts.long()
        lengths = starts.diff()
        if len(starts) < 2 or int(starts[0]) != 0 or bool((lengths < 1).any()):
            raise ValueError(f"sequence_starts must ascend strictly from 0, got {sequence_starts.tolist()}")
        order = torch.argsort(lengths, descending=True, stable=True)
        blocks: list[PackedBlock] = []
        scatter = torch.empty(int(starts[-1]), dtype=torch.long)
        cells = 0
        for members in _similar_lengths(order.tolist(), lengths.tolist()):
            index = torch.tensor(members)
            max_length = int(lengths[index[0]])
            column = torch.arange(max_length)
            gather = starts[index, None] + torch.minimum(column, lengths[index, None] - 1)
            is_token = column < lengths[index, None]
            cell = cells + torch.arange(gather.numel()).view_as(gather)
            scatter[gather[is_token]] = cell[is_token]
            cells += gather.numel()
            gather = gather.to(device)
            mask = None if trees is None else trees.mask(gather, is_token=is_token.to(device))
            blocks.append(
                PackedBlock(gather=gather.flatten(), num_sequences=len(members), max_length=max_length, mask=mask)
            )
        longest = int(lengths.max()) if max_position is None else max_position + 1
        return cls(blocks=tuple(blocks), scatter=scatter.to(device), max_length=longest)


def _similar_lengths(longest_first: list[int], lengths: list[int]) -> list[list[int]]:
    """Cuts the sorted sequences into runs whose padding stays below MAX_PADDING_SHARE."""
    runs: list[list[int]] = []
    tokens = 0
    for sequence in longest_first:
        if runs:
            cells = lengths[runs[-1][0]] * (len(runs[-1]) + 1)
            if cells <= MIN_BLOCK_CELLS or cells - tokens - lengths[sequence] <= MAX_PADDING_SHARE * cells:
                runs[-1].append(sequence)
                tokens += lengths[sequence]
                continue
        runs.append([sequence])
        tokens = lengths[sequence]
    return runs


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_layout: PackedLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_other_arguments_of_transformers: object,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v within each packed sequence, causal or by the layout's masks.

    `query` [1, H, N, D], `key` and `value` [1, H_kv, N, D]; returns [1, N, H, D]. Grouped-query heads are
    shared by H / H_kv queries. With `sliding_window` W a query sees the W newest tokens, itself included. Raises
    ValueError for what would silently compute something else: an attention mask, a window shorter than a tree,
    soft-capped scores, attention sinks, or dropout.
    """
    if attention_mask is not None or softcap is not None or s_aux is not None or dropout != 0.0:
        raise ValueError("packed attention supports no extra mask, soft cap, attention sinks or dropout")
    if packed_layout is None:
        raise ValueError("the model's layers do not hand on where the packed sequences lie")
    window = sliding_window if sliding_window is not None and sliding_window < packed_layout.max_length else None
    num_heads, num_key_heads = query.shape[1], key.shape[1]
    # [N, H, D]: a packed token is one contiguous row, so that gathering copies rows.
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    outputs = []
    for block in packed_layout.blocks:
        block_query, block_key, block_value = (
            tensor.index_select(0, block.gather)
            .view(block.num_sequences, block.max_length, *tensor.shape[1:])
            .transpose(1, 2)
            for tensor in rows
        )
        mask = block.mask if window is None else _window_mask(block, window=window)
        if mask is not None and num_heads != num_key_heads:
            # No fused CUDA kernel but cuDNN's takes a mask and shared heads together; the fallback stores all scores.
            block_key, block_value = (
                tensor.repeat_interleave(num_heads // num_key_heads, dim=1) for tensor in (block_key, block_value)
            )
        attended = scaled_dot_product_attention(
            block_query,
            block_key,
            block_value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=block_key.shape[1] != num_heads,
        )
        outputs.append(attended.transpose(1, 2).reshape(-1, num_heads, value.shape[-1]))
    cells_in_order = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return cells_in_order.index_select(0, packed_layout.scatter).unsqueeze(0), None


def _window_mask(block: PackedBlock, *, window: int) -> Tensor | None:
    """bool[L_c, L_c], query x key: the `window` newest tokens, the query's own included. None: all fit into it."""
    if block.mask is not None:
        raise ValueError(f"a tree of sequences exceeds the model's window of {window} tokens")
    if block.max_length <= window:
        return None
    position = torch.arange(block.max_length, device=block.gather.device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < window)


def no_attention_mask(*_positional: object, **_named: object) -> None:
    """What transformers should build as the mask of packed attention: nothing."""
