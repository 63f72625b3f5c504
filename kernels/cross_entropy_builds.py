"""Settings of the cross-entropy kernel, to be compiled and inspected without a GPU."""

from tolktrain_kernels.compilation import Build
from tolktrain_kernels.cross_entropy_triton import choose_block, softmax_terms_kernel

# The models' text and speech heads, then odd and other widths.
VOCABULARIES = (49152, 502, 5, 4097, 128256)


def builds() -> list[Build]:
    """By vocabulary, type of the logits, and whether the gradient is wanted."""
    types = ("bf16", "fp32")
    return [loss_build(ids, logits, derives) for ids in VOCABULARIES for logits in types for derives in (False, True)]


def loss_build(vocabulary: int, logits: str, derives: bool) -> Build:
    """The kernel for logits of a type of Triton; text has no ignored targets."""
    block, num_warps = choose_block(vocabulary)
    types = {"logits": f"*{logits}", "targets": "*i64", "nll": "*fp32", "ignored": "i32"}
    constants = {"VOCABULARY": vocabulary, "BLOCK": block, "DERIVES": derives}
    constants["IGNORES"] = vocabulary != VOCABULARIES[0]
    name = f"loss{' and gradient' if derives else ''} {vocabulary} {logits}"
    return Build(name, softmax_terms_kernel, types, constants, num_warps)
