class self:  # noqa: N801 - the page shows a part of a method
    tasks, heads = ("mass",), {"mass": lambda code: code}

    @staticmethod
    def standard(task, value):
        return value / 100

    @staticmethod
    def original(task, value):
        return value * 100


def squared_error(target, value):
    return (target - value) ** 2


batch, code, training, out = {"mass": 300.0}, 2.0, True, {}


def check(page):
    assert page["out"] == {"mass": 1.0}
