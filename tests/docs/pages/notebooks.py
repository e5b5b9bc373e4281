CAPPED = False


def check(page):
    assert page["trainer"].step == 40
    assert page["again"].step == 60
    assert list(page["curves"]["step"])[-1] == 60
