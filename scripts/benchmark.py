"""How fast vae_lab is, as ratios to other ways of doing the same work, measured side by side in one run.

python scripts/benchmark.py training --root DIR      # Fashion-MNIST from its four files in DIR; else pixels are made up
python scripts/benchmark.py packed --peers-python OTHER/bin/python    # peers that are installed elsewhere
python scripts/benchmark.py tables outputs/benchmark/*.json           # as Markdown
"""

from benchmarks.command import main

if __name__ == "__main__":
    main()
