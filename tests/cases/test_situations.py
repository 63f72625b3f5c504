"""Situations from the field that must keep working: which test holds each.

When something is refused that was accepted before, the test of its situation fails. A situation whose test is renamed
or removed fails here.
"""

import ast
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

CONTENT = "prepare/test_audio_content.py"
BACKBONE = "interop/test_backbone_files.py"
FILES = "prepare/manifest/test_folder_files.py"
SITUATIONS = {
    "a TextGrid in the short form": "prepare/test_textgrid.py::test_every_tier_and_interval_is_read",
    "a TextGrid in UTF-16": "prepare/test_textgrid.py::test_every_tier_and_interval_is_read",
    "a TextGrid with tiers of several speakers": "prepare/test_textgrid.py::test_which_tier_holds_the_words",
    "a TextGrid with doubled quotes in its labels": "prepare/test_textgrid.py::test_quotes_in_words",
    "a WAV, FLAC, AIFF or AU file written into a pipe": f"{CONTENT}::test_what_programs_write_is_read_whole",
    "an extensible WAV file": f"{CONTENT}::test_what_programs_write_is_read_whole",
    "a WAV file of floating-point samples": f"{CONTENT}::test_what_programs_write_is_read_whole",
    "an A-law or mu-law WAV file": f"{CONTENT}::test_what_programs_write_is_read_whole",
    "an RF64 file": f"{CONTENT}::test_what_programs_write_is_read_whole",
    "an MP3 file of variable rate, also without a header": f"{CONTENT}::test_what_programs_write_is_read_whole",
    "an ID3 tag before FLAC": f"{CONTENT}::test_a_tag_before_the_audio_is_no_audio",
    "tags, padding and chunks after the audio": f"{CONTENT}::test_tags_and_padding_after_the_audio_are_no_audio",
    "hidden files in a folder of recordings": "prepare/manifest/test_folders.py::test_folder",
    "names with spaces and accents in either form": f"{FILES}::test_names_match_in_either_form_of_their_accents",
    "suffixes in upper case": f"{FILES}::test_transcripts_and_their_order",
    "a tied text head that is stored too": f"{BACKBONE}::test_the_text_head_and_the_configuration",
    "other files in the folder of a backbone": f"{BACKBONE}::test_other_files_of_a_folder_do_not_count",
    "bf16 weights": "interop/test_huggingface.py::test_bfloat16_checkpoint_and_mistral",
    "fp16 weights": f"{BACKBONE}::test_the_largest_and_smallest_values_of_a_type_are_finite",
    "sharded weights": "interop/test_huggingface.py::test_sharded_checkpoint",
    "a wrong `latest`, a damaged checkpoint": "train/test_resume.py::test_a_damaged_checkpoint_is_passed_over",
    "one process after two": "train/test_distributed.py::test_one_process_goes_on_with_what_two_have_saved",
    "line ends of Windows, and byte order marks": "prepare/test_ctm.py::test_marks_and_line_ends",
    "merge keys in YAML, which have a message": "config/test_load.py::test_keys_given_twice_and_other_oddities",
    "numbers as people write them in YAML": "config/test_load.py::test_spellings_of_numbers",
}


@lru_cache
def functions_of(path: Path) -> frozenset[str]:
    """The names of the test functions in a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def test_there_are_25() -> None:
    assert len(SITUATIONS) == 25


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_situation_has_its_test(situation: str) -> None:
    file, _, name = SITUATIONS[situation].partition("::")
    assert name in functions_of(TESTS / file)


def test_a_test_that_does_not_exist_is_noticed() -> None:
    assert "test_of_nothing" not in functions_of(TESTS / CONTENT)
