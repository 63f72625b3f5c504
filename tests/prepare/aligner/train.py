"""Train and measure a small CTC model that aligns English text with speech of espeak-ng.

python tests/prepare/aligner/train.py --work /tmp/aligner             # trains, writes the model next to this file
python tests/prepare/aligner/train.py --work /tmp/aligner --evaluate  # measures it on held-out speech
"""

import argparse
import pickle
from pathlib import Path

from speech import Sentence, speak, training_voices

FOLDER = Path(__file__).parent / "model"
SEED = 20250306
PASSAGES = 320
STEPS = 3400


def corpus(work: Path, seed: int) -> list[list[Sentence]]:
    """The training passages; spoken once, kept in `work`."""
    path = work / f"speech-{PASSAGES}-{seed}.pickle"
    if not path.exists():
        path.write_bytes(pickle.dumps(list(speak(training_voices(PASSAGES, seed), seed))))
    passages: list[list[Sentence]] = pickle.loads(path.read_bytes())
    return passages


def main() -> None:
    """Train and save, or measure what is saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the spoken corpus and unfinished models")
    parser.add_argument("--model", type=Path, default=FOLDER, help="folder of the model")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--evaluate", action="store_true", help="measure the model instead of training it")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.evaluate:
        from evaluate import report

        report(arguments.model)
        return
    # Every espeak-ng process imports this file again; torch and transformers would make that slow.
    passages = corpus(arguments.work, arguments.seed)
    from learning import save, train

    save(train(passages, arguments.seed, arguments.steps), arguments.model)


if __name__ == "__main__":
    main()
