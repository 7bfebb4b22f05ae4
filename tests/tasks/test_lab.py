"""Lab tasks: right answers and own styles are two scores, and problems follow the data's dials."""

from sftlab.lab.abilities import lab_conversations
from sftlab.lab.options import LabOptions
from sftlab.tasks.lab import LabTask
from sftlab.tasks.registry import build_task
from sftlab.tasks.task import Answer


def _own_answers(task: LabTask) -> list[Answer]:
    told = lab_conversations(task.ability, task.num_problems, split="test", options=task.options)
    texts = [tuple(t.text for t in c.turns if t.role == "assistant") for c in told]
    return [Answer(p.uid, 0, t, (True,) * len(t)) for p, t in zip(task.problems(), texts, strict=True)]


def test_accuracy_first_then_kinds_then_styles():
    for ability in ("math", "code", "general", "facts", "translation"):
        task = LabTask(ability, 200)
        verdicts = task.grade(task.problems(), _own_answers(task))
        scores = task.scores(verdicts)
        assert scores[0].metric == "accuracy/exact@2" and scores[0].num_problems == 200
        assert all(score.value == 1 for score in scores)
        styles = [s for s in scores if s.metric.startswith("style/")]
        assert bool(styles) == (ability in ("math", "code", "general"))
    asked = next(
        s
        for s in LabTask("general", 200).scores(LabTask("general", 200).grade(*_general()))
        if "style/style" in s.metric
    )
    assert 80 < asked.num_problems < 160, "only talk that looks like math or code has a style to choose"


def _general():
    task = LabTask("general", 200)
    return task.problems(), _own_answers(task)


def test_a_right_answer_in_another_style_is_right_and_its_style_is_told():
    task = LabTask("math", 20)
    answers = [Answer(p.uid, 0, (f"That makes {p.reference[0][1]}.",), (True,)) for p in task.problems()]
    accuracy, *rest = task.scores(task.grade(task.problems(), answers))
    assert accuracy.value == 1
    assert next(score for score in rest if score.metric == "style/style@1").value == 0


def test_first_verdicts_go_with_first_answers():
    task = LabTask("code", 5)
    answers = _own_answers(task)
    verdicts = task.grade(task.problems(), answers)
    assert [v.uid for v in verdicts[:5]] == [a.uid for a in answers]


def test_problems_follow_the_options_but_not_the_noise():
    plain = LabTask("general", 100, options=LabOptions(overlap=0))
    assert not {p.category for p in plain.problems()} & {"arithmetic", "python"}
    assert LabTask("general", 100).problems() == LabTask("general", 100, options=LabOptions(noise=0.5)).problems()
    assert build_task("lab_facts", {"num_problems": 7}).problems()
