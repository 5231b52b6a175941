"""README's picture is drawn from the record of the demo."""

import json

from checkout import ROOT

from studies import hero


def test_the_picture_has_what_the_record_has():
    record = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    found, seeds = hero.aps(record), record["results"]
    assert found["box AP"]["frozen_loco"] == [seed["frozen_loco"]["float32"]["box AP"] for seed in seeds.values()]
    box, mask = hero.draw(found).axes
    assert (box.get_title(loc="left"), mask.get_title(loc="left")) == ("box AP (%)", "mask AP (%)")
    assert [len(line.get_xdata()) for line in mask.lines] == [len(seeds)] * len(hero.RUNS)
