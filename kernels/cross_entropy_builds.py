"""Settings of the cross-entropy kernel, to be compiled and inspected without a GPU."""

from tolktrain_kernels.compilation import Build
from tolktrain_kernels.cross_entropy_triton import choose_setting, kept_softmax_terms_kernel, softmax_terms_kernel

# The models' text and speech heads, then odd and other widths.
VOCABULARIES = (49152, 502, 5, 4097, 128256)


def builds() -> list[Build]:
    """By vocabulary, type of the logits, and whether the gradient is wanted."""
    types = ("bf16", "fp32")
    return [loss_build(ids, logits, derives) for ids in VOCABULARIES for logits in types for derives in (False, True)]


def loss_build(vocabulary: int, logits: str, derives: bool) -> Build:
    """The kernel for logits of a type of Triton; text has no ignored targets."""
    setting = choose_setting(vocabulary, may_keep=derives and logits == "bf16")
    types = {"logits": f"*{logits}", "targets": "*i64", "nll": "*fp32", "ignored": "i32"}
    constants = {"VOCABULARY": vocabulary, "BLOCK": setting.block, "IGNORES": vocabulary != VOCABULARIES[0]}
    name = f"loss{' and gradient' if derives else ''} {vocabulary} {logits}"
    if setting.keeps:
        types["zero"] = "i32"
        return Build(name, kept_softmax_terms_kernel, types, constants, setting.num_warps)
    return Build(name, softmax_terms_kernel, types, constants | {"DERIVES": derives}, setting.num_warps)
