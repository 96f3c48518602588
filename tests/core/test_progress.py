from kobza.core.progress import listen, progress, task


def test_nobody_listens_by_default():
    assert list(progress([1, 2], "x")) == [1, 2]


def test_a_listener_hears_every_step_and_the_end():
    heard = []
    with listen(lambda t: heard.append((t.label, t.done, t.total, t.note, t.finished))):
        list(progress("ab", "letters"))
        with task("open") as work:
            work.step(note="half")
    assert heard[:3] == [("letters", 0, 2, "", False), ("letters", 1, 2, "", False), ("letters", 2, 2, "", False)]
    assert heard[3][-1] is True and ("open", 1, None, "half", False) in heard
    list(progress("ab", "later"))
    assert "later" not in {h[0] for h in heard}


def test_the_end_is_heard_after_an_error_too():
    heard = []
    try:
        with listen(heard.append), task("x"):
            raise ValueError
    except ValueError:
        pass
    assert heard[-1].finished
