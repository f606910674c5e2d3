"""A stranger's own table: from `init` to recommendations, every command taken from what init prints."""

import json
import shlex

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from seqrec_prompt.cli import EXIT_ERROR, EXIT_OK, main


def own_table(path, *, sessions=40, seed=0):
    """Somebody's sales: odd names, capitals, a repeated purchase now and then."""
    draw = np.random.default_rng(seed)
    rows = ["Customer,Bought On,Product Code,Product Name"]
    for session in range(sessions):
        start = int(draw.integers(12))
        for step in range(int(draw.integers(3, 7))):
            item = (start + step) % 12
            rows.append(f"c{session},2024-01-{1 + session % 28:02d} 10:{step:02d},P{item:02d},SHOWER GEL NO {item}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_new_user_has_recommendations_in_under_ten_commands(here, capsys, tiny_model):
    own_table(here / "sales.csv")
    assert main(["init", "--interactions", "sales.csv", "--model", str(tiny_model)]) == EXIT_OK
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if "seqrec-prompt" in line]
    assert [command[1] for command in commands] == ["prepare", "validate", "finetune", "recommend", "evaluate"]
    installing = 2  # seqrec_prompt, and the bundled model
    assert installing + 1 + len(commands) < 10
    shorter = {"finetune": ["--max-steps", "2"]}
    for command in commands:
        assert main([*command[1:], *shorter.get(command[1], [])]) == EXIT_OK, capsys.readouterr().err
    lists = pq.read_table("runs/recommendations.parquet").to_pandas()
    test = pq.read_table("runs/data/test.parquet")
    assert len(lists.session_id.unique()) == test.num_rows
    assert (lists.groupby("session_id").item_id.nunique() <= 10).all()
    assert set(lists.item_id) <= {f"P{item:02d}" for item in range(12)}
    shown = capsys.readouterr().out
    assert "| recommendations " in shown  # its row in the table
    assert "Shower gel no" in shown  # example sessions, in words


def test_every_section_that_init_writes_is_valid_and_says_what_was_seen(here, capsys):
    own_table(here / "sales, all.csv")
    words = ["init", "--interactions", "sales, all.csv", "--runs", "my: runs, here", "--out", "my settings.yaml"]
    assert main([*words, "--json"]) == EXIT_OK
    told = json.loads(capsys.readouterr().out)
    assert told["result"]["columns"] == {
        "session": "Customer",
        "item": "Product Code",
        "time": "Bought On",
        "title": "Product Name",
        "split": None,
    }
    written = yaml.safe_load((here / "my settings.yaml").read_text(encoding="utf-8"))
    assert list(written) == ["prepare", "validate", "finetune", "recommend", "evaluate"]
    assert written["prepare"]["interactions"] == "sales, all.csv"
    assert written["prepare"]["title_case"] == "sentence"
    assert written["recommend"]["exclude_seen"] is True
    assert (
        written["evaluate"]["recommendations"]
        == [written["recommend"]["out"]]
        == ["my: runs, here/recommendations.parquet"]
    )
    for verb in written:
        main([verb, "--config", "my settings.yaml", "--dry-run", "--json"])
        assert json.loads(capsys.readouterr().out)["config"].keys() >= written[verb].keys()


def test_commented_suggestions_are_settings_that_exist(here, capsys):
    """Each line that is commented out can be put in."""
    own_table(here / "sales.csv")
    assert main(["init", "--interactions", "sales.csv"]) == EXIT_OK
    lines = (here / "seqrec.yaml").read_text(encoding="utf-8").splitlines()
    opened = "\n".join(line.replace("  # ", "  ", 1) if line.startswith("  # ") else line for line in lines)
    (here / "seqrec.yaml").write_text(opened, encoding="utf-8")
    sections = yaml.safe_load(opened)
    assert sections["prepare"]["k_core"] == 5
    assert sections["finetune"]["method"] == "qlora"
    capsys.readouterr()
    for verb in sections:
        main([verb, "--config", "seqrec.yaml", "--dry-run", "--json"])
        assert "plan" in json.loads(capsys.readouterr().out), verb


def test_without_times_the_last_item_of_each_session_tests(here):
    (here / "log.csv").write_text("user,item\nu,a\nu,b\nu,c\nv,a\nv,c\nv,b\n", encoding="utf-8")
    assert main(["init", "--interactions", "log.csv"]) == EXIT_OK
    assert main(["prepare", "--config", "seqrec.yaml"]) == EXIT_OK
    assert pq.read_table("runs/data/test.parquet").num_rows == 2


def test_a_table_as_a_german_spreadsheet_saves_it_is_read(here, capsys):
    """Semicolons, a byte-order mark, titles in quotes with commas, one missing, leading zeros, names nobody guesses."""
    orders = [
        f"{who:05};{(who + step) % 4:03};2024-05-0{who + 1}T10:0{step}:00Z;9,99" for who in range(8) for step in (0, 1)
    ]
    articles = ['000;"Tee, grün";4,50', '001;"Becher ""groß""; rot";3,99', "002;;1,00", "003;Kanne;20,00"]
    for name, lines in (
        ("orders.csv", ["Kunde;Artikel;Wann;Preis", *orders]),
        ("articles.csv", ["Artikel;Name;P", *articles]),
    ):
        (here / name).write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    files = ["init", "--interactions", "orders.csv", "--items", "articles.csv"]
    assert main(files) == EXIT_ERROR
    assert capsys.readouterr().err == (
        "error: orders.csv: cannot tell which column is the session or user id. It has: Kunde, Artikel, Wann, Preis. "
        "Name it: --session-column.\n"
    )
    assert main([*files, "--session-column", "Kunde"]) == EXIT_OK
    assert main(["prepare", "--config", "seqrec.yaml"]) == EXIT_OK
    catalog = pq.read_table("runs/data/catalog.parquet")
    titles = dict(zip(catalog["item_id"].to_pylist(), catalog["title"].to_pylist(), strict=True))
    assert titles == {"000": "Tee, grün", "001": 'Becher "groß"; rot', "002": "", "003": "Kanne"}
    assert pq.read_table("runs/data/train.parquet")["session_id"][0].as_py() == "00000"


def test_items_without_titles_are_left_out_so_that_the_settings_work(here, capsys):
    rows = [f"{user},{sku},{day}.2.2024" for day, user in enumerate("uvw", 1) for sku in "abc"]
    (here / "log.csv").write_text("\n".join(["user,sku,when", *rows]) + "\n", encoding="utf-8")
    (here / "items.csv").write_text("sku,what\na,Cup\nb,Pot\n", encoding="utf-8")
    assert main(["init", "--interactions", "log.csv", "--items", "items.csv"]) == EXIT_OK
    told = capsys.readouterr().out
    assert "--title-column names one of sku, what" in told
    assert "--time-column names one. Times are seconds" in told
    assert main(["prepare", "--config", "seqrec.yaml"]) == EXIT_OK
    assert "An LLM knows little about bare ids: give --items or --title-column." in capsys.readouterr().out


def test_without_a_title_the_columns_that_may_be_one_are_named(here, capsys):
    (here / "log.csv").write_text("user,item,what\nu,a,Cup\nu,b,Pot\n", encoding="utf-8")
    assert main(["init", "--interactions", "log.csv"]) == EXIT_OK
    assert "--title-column names one of user, item, what" in capsys.readouterr().out


def test_settings_that_are_there_are_kept(here, capsys):
    own_table(here / "sales.csv")
    (here / "seqrec.yaml").write_text("mine", encoding="utf-8")
    assert main(["init", "--interactions", "sales.csv"]) == EXIT_ERROR
    assert capsys.readouterr().err.startswith("error: seqrec.yaml is there already.")
    assert (here / "seqrec.yaml").read_text(encoding="utf-8") == "mine"
    assert main(["init", "--interactions", "sales.csv", "--overwrite"]) == EXIT_OK


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "no such file"), ("", "the file is empty"), ("a,b\n1,2\n", "cannot tell which column is the item id")],
)
def test_a_table_that_will_not_do_is_named_and_nothing_is_written(here, capsys, content, part):
    if content is not None:
        (here / "sales.csv").write_text(content, encoding="utf-8")
    assert main(["init", "--interactions", "sales.csv"]) == EXIT_ERROR
    shown = capsys.readouterr().err
    assert "sales.csv" in shown
    assert part in shown
    assert not (here / "seqrec.yaml").exists()
