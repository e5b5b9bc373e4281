CAPPED = False


def check(page):
    assert page["trainer"].step == 2
    report = page["tfloss"].replay.replay(page["trainer"], "runs/nan/nonfinite/step_00000003")
    assert '"Sqrt"' in report and "from -1 to 2.08931" in report
