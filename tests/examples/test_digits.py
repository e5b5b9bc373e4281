"""The digits example runs, on one replica and two, from start to SavedModel."""

from tests.examples.harness import load_without_tfloss, train_resume_and_export


def test_from_start_to_saved_model(tmp_path):
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.model.width=4"]

    path, results = train_resume_and_export("digits/train.py", "digits", tmp_path, small)

    assert 0 <= results["test/accuracy"] <= 1
    shapes = load_without_tfloss(path, {"image": ([3, 8, 8, 1], "float32")})
    assert shapes == {"probabilities": [3, 10]}
