import os
import subprocess
import sys


def test_counting_examples_imports_nothing_heavy(tmp_path):
    (tmp_path / "RTE").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "RTE" / f"{name}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    code = (
        "import sys, tfmt.data, tfmt.metrics, tfmt.tasks\n"
        f"print(tfmt.data.count_examples('rte', {str(tmp_path)!r}), tfmt.data.count_examples('mnli')['train'])\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'tf_keras', 'transformers', 'sklearn', 'scipy', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout == "{'train': 1, 'validation': 1} 392702\n[]\n"
