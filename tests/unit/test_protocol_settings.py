"""Layers of settings: who wins, where a value came from, and what is said about a wrong one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InputError, InvariantViolation
from protocol.settings import Loaded, Secret, Section, SettingsError, load, parse_set, schema, setting
from protocol.settings_fields import leaves, tree_of
from protocol.settings_layers import Given, Origin, changes, flat, grafted, plain, resolve

Small = Annotated[int, setting("", ge=1, le=9)]


class Special(Section, frozen=True):
    size: Annotated[Small | None, setting("Instead of the usual.")] = None


class Limits(Section, frozen=True):
    requests: Annotated[int, setting("How many.", ge=1, le=100, reloadable=True)] = 10
    rate: Annotated[float, setting("How often.", ge=0)] = 1.0
    bound: Annotated[Small | Literal["auto"], setting("How large.")] = "auto"


class Door(Section, frozen=True):
    address: Annotated[str, setting("Where.", pattern=r"^\w+:\d+$", wanted="HOST:PORT")] = "here:1"
    kind: Annotated[Literal["thread", "process"], setting("How.")] = "thread"
    is_open: Annotated[bool, setting("Whether.")] = False
    key: Annotated[Path | None, setting("With what.")] = None
    password: Annotated[Secret | None, setting("For whom.")] = None
    sizes: Annotated[tuple[int, ...], setting("Which.")] = ()
    log_file: Annotated[Path | None, setting("Ends like a secret's variable, and is none.")] = None


class Toy(Section, frozen=True):
    limits: Annotated[Limits, setting("Bounds.")] = Limits()
    door: Annotated[Door, setting("Where to knock.")] = Door()
    each: Annotated[dict[str, Special], setting("By name.", reloadable=True)] = {}  # noqa: RUF012 - copied by msgspec

    def contradictions(self) -> Any:
        if self.door.is_open and self.door.key is None:
            yield "door.is_open", "door.is_open is set without door.key", "set both"


def toy(
    tmp_path: Path | None = None,
    toml: str = "",
    *,
    env: Mapping[str, str] | None = None,
    secrets_dir: Path | None = None,
    **overrides: object,
) -> Loaded[Toy]:
    file = None
    if tmp_path is not None:
        file = tmp_path / "toy.toml"
        file.write_bytes(toml.encode())
    flags = {key.replace("__", "."): value for key, value in overrides.items()}
    return load(Toy, prefix="TOY", file=file, env=env, secrets_dir=secrets_dir, overrides=flags)


def refused(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        toy(*args, **kwargs)
    assert caught.value.exit_code == 3
    assert str(caught.value) == "; ".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


# ---- layers ---------------------------------------------------------------------------------------------------------


def test_without_any_layer_everything_is_default() -> None:
    loaded = toy()
    assert loaded.settings == Toy()
    assert set(map(str, loaded.origins.values())) == {"default"}
    assert list(loaded.origins) == list(flat(Toy()))


def test_each_layer_wins_over_the_one_below_and_is_named_as_the_origin(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (tmp_path / "six").write_text("6\n")
    file, key = "[limits]\nrequests = 3\n", "limits.requests"
    seen = [toy(tmp_path, file)]
    env = {"TOY__LIMITS__REQUESTS": "4"}
    seen.append(toy(tmp_path, file, env=env))
    (secrets / key).write_text("5\n")
    seen.append(toy(tmp_path, file, env=env, secrets_dir=secrets))
    env["TOY__LIMITS__REQUESTS_FILE"] = str(tmp_path / "six")
    seen.append(toy(tmp_path, file, env=env, secrets_dir=secrets))
    seen.append(toy(tmp_path, file, env=env, secrets_dir=secrets, limits__requests="7"))
    assert [each.settings.limits.requests for each in seen] == [3, 4, 5, 6, 7]
    assert [str(each.origins[key]) for each in seen] == [
        f"{tmp_path}/toy.toml:2",
        "TOY__LIMITS__REQUESTS",
        f"{secrets}/limits.requests",
        f"TOY__LIMITS__REQUESTS_FILE={tmp_path}/six",
        "command line",
    ]
    assert [each.origins[key].layer for each in seen] == ["file", "environment", "secret", "secret", "flag"]


def test_layers_mix_key_by_key(tmp_path: Path) -> None:
    loaded = toy(tmp_path, "limits.requests = 3\nlimits.rate = 2\n", env={"TOY__LIMITS__RATE": "4.5"})
    assert loaded.settings.limits == Limits(requests=3, rate=4.5)


def test_lines_are_found_behind_lists_texts_of_many_lines_and_inline_tables(tmp_path: Path) -> None:
    text = '# first\n[door]\nsizes = [\n  1, # requests = 5\n  2,\n]\nkey = """\nrequests = 1"""\n\nkind = "process"\n'
    text += "[limits] # here\nrequests = 4\n[each]\na = {size = 2}\n[each.b]\nsize = 3\n"
    for ends in ("\n", "\r\n"):
        assert toy(tmp_path, text.replace("\n", ends)).origins == toy(tmp_path, text).origins
    origins = toy(tmp_path, text).origins
    lines = {key: str(origin).rpartition(":")[2] for key, origin in origins.items() if origin.layer == "file"}
    assert lines == {
        "limits.requests": "12", "door.kind": "10", "door.key": "7", "door.sizes": "3", "each.a.size": "14",
        "each.b.size": "16",
    }  # fmt: skip


def test_a_path_in_a_file_is_relative_to_the_file_and_elsewhere_to_the_working_directory(tmp_path: Path) -> None:
    assert toy(tmp_path, "door.key = 'keys/a'").settings.door.key == tmp_path / "keys/a"
    assert toy(tmp_path, "door.key = '/keys/a'").settings.door.key == Path("/keys/a")
    assert toy(env={"TOY__DOOR__KEY": "keys/a"}).settings.door.key == Path("keys/a")


def test_text_layers_say_numbers_switches_lists_and_nothing(tmp_path: Path) -> None:
    env = {"TOY__LIMITS__BOUND": "4", "TOY__DOOR__IS_OPEN": "true", "TOY__DOOR__SIZES": "1, 2,3", "TOY__DOOR__KEY": "k"}
    loaded = toy(env=env).settings
    assert (loaded.limits.bound, loaded.door.is_open, loaded.door.sizes) == (4, True, (1, 2, 3))
    assert toy(tmp_path, "door.key = 'a'", door__key="").settings.door.key is None
    assert toy(door__sizes="").settings.door.sizes == ()
    assert toy(door__sizes="[1, 2]").settings.door.sizes == (1, 2)  # as it would stand in a file
    with pytest.raises(SettingsError):
        toy(door__sizes="[::1]")


def test_values_that_already_have_their_type_pass_as_they_are() -> None:
    assert toy(door__key=Path("a"), limits__requests=3, door__sizes=[1]).settings.door == Door(
        key=Path("a"), sizes=(1,)
    )


def test_names_that_the_user_chooses_make_sections(tmp_path: Path) -> None:
    loaded = toy(tmp_path, "[each.resnet-18]\nsize = 2\n[each.idle]\n", each__other__size="3")
    assert loaded.settings.each == {"resnet-18": Special(size=2), "other": Special(size=3)}
    assert loaded.origins["each.other.size"].layer == "flag"


def test_names_with_dots_are_quoted_wherever_a_key_is_written(tmp_path: Path) -> None:
    loaded = toy(tmp_path, '[each."a.b"]\nsize = 2\n', **{'each."c d".size': "3"})
    assert loaded.settings.each == {"a.b": Special(size=2), "c d": Special(size=3)}
    assert list(flat(loaded.settings))[-2:] == ['each."a.b".size', 'each."c d".size']
    assert str(loaded.origins['each."a.b".size']) == f"{tmp_path}/toy.toml:2"
    (sentence,) = refused(tmp_path, '[each."a.b"]\nsise = 2\n')
    assert sentence.startswith('each."a.b".sise is unknown')
    assert sentence.endswith('did you mean each."a.b".size?')


def test_variables_of_other_programs_are_not_read() -> None:
    assert toy(env={"TOY_CONFIG": "x", "OTHER__LIMITS__REQUESTS": "x", "toy__x": "1"}).settings == Toy()


@pytest.mark.parametrize("name", ["TOY_LIMITS_REQUESTS", "TOY_DOOR_PASSWORD_FILE", "TOY_DOOR_IS_OPEN"])
def test_a_variable_that_means_a_setting_and_is_spelt_with_single_underscores_is_refused(name: str) -> None:
    (sentence,) = refused(env={name: "/nowhere", "TOY_PORT": "tcp://10.0.0.1:1", "TOY_LIMITS": "1"})
    key = name.removeprefix("TOY_").removesuffix("_FILE").lower().replace("_", ".", 1)
    assert name in sentence
    assert sentence.endswith(f"did you mean {key} (two underscores between its parts)?")


def test_a_field_that_ends_like_a_secrets_variable_is_still_a_field() -> None:
    assert toy(env={"TOY__DOOR__LOG_FILE": "/nowhere/x"}).settings.door.log_file == Path("/nowhere/x")


def test_files_of_a_secrets_folder_that_name_no_section_are_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "tls.key").write_bytes(b"\xff\xfe")
    (tmp_path / "password").write_text("x")
    (tmp_path / "..data").mkdir()
    (tmp_path / ".limits.requests").write_text("x")
    assert toy(secrets_dir=tmp_path).settings == Toy()
    (tmp_path / "door.pasword").write_text("x")
    assert refused(secrets_dir=tmp_path) == [
        f"door.pasword is unknown ({tmp_path}/door.pasword); did you mean door.password?"
    ]


# ---- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("[limits]\nrequets = 3", "limits.requets is unknown (FILE:2); did you mean limits.requests?"),
        ("requests = 3", "requests is unknown (FILE:1); did you mean limits.requests?"),
        ("[limts]\nrequests = 3", "limts.requests is unknown (FILE:2); did you mean limits.requests?"),
        ("[limts]", "limts is unknown (FILE:1); did you mean limits?"),
        ("[lmits]\nrequets = 3", "lmits.requets is unknown (FILE:2); did you mean limits.requests?"),
        ("[door]\nwindow = 1", "door.window is unknown (FILE:2); known in door: address, kind, is_open, key, password, "
                               "sizes, log_file"),
        ("colour = 1", "colour is unknown (FILE:1); known sections: limits, door, each"),
        ("limits.requests.x = 1", "limits.requests.x is unknown (FILE:1); did you mean limits.requests?"),
        ("[each.a]\nsise = 1", "each.a.sise is unknown (FILE:2); did you mean each.a.size?"),
        ("limits = 3", "limits (FILE:1) is a section; set limits.NAME, not limits itself"),
        ("each = 3", "each (FILE:1) is a section; set each.NAME, not each itself"),
        ("limits.requests = 0", "limits.requests is 0 (FILE:1); give a whole number from 1 to 100"),
        ("limits.requests = true", "limits.requests is True (FILE:1); give a whole number from 1 to 100"),
        ("limits.requests = '3'", "limits.requests is '3' (FILE:1); give a whole number from 1 to 100"),
        ("limits.rate = nan", "limits.rate is nan (FILE:1); give a number of at least 0"),
        ("limits.rate = inf", "limits.rate is inf (FILE:1); give a number of at least 0"),
        ("limits.bound = 10", "limits.bound is 10 (FILE:1); give a whole number from 1 to 9 or auto"),
        ("door.kind = 'x'", "door.kind is 'x' (FILE:1); give one of process, thread"),
        ("door.is_open = 1", "door.is_open is 1 (FILE:1); give true or false"),
        ("door.address = ''", "door.address is '' (FILE:1); give HOST:PORT"),
        ("door.key = 3", "door.key is 3 (FILE:1); give a path"),
        ("door.sizes = [1, 'x']", "door.sizes is [1, 'x'] (FILE:1); give a list, each a whole number"),
        ("door.password = 3", "door.password is *** (FILE:1); give text"),
        ("limits.rate = 1979-05-27", "limits.rate is datetime.date(1979, 5, 27) (FILE:1); give a number of at least 0"),
        ("door.is_open = true", "door.is_open is set without door.key (FILE:1); set both"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_answered_with_its_place_and_what_would_be_right(
    toml: str, sentence: str, tmp_path: Path
) -> None:
    assert refused(tmp_path, toml) == [sentence.replace("FILE", f"{tmp_path}/toy.toml")]


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, "x = 1\n[limits]\nrate = 'a'\n", env={"TOY__DOOR__KIND": "x"}, limits__requets="1")
    assert [sentence.split(" ")[0] for sentence in said] == ["x", "limits.requets", "limits.rate", "door.kind"]


def test_a_value_that_a_later_layer_mends_is_not_refused(tmp_path: Path) -> None:
    assert toy(tmp_path, "limits.requests = 0", limits__requests="1").settings.limits.requests == 1


def test_a_secret_is_shown_nowhere(tmp_path: Path) -> None:
    loaded = toy(tmp_path, "door.password = 'rosebud'")
    assert loaded.settings.door.password is not None
    assert loaded.settings.door.password.reveal() == "rosebud"
    shown = f"{loaded} {loaded.settings.door.password!s} {list(map(plain, flat(loaded.settings).values()))}"
    shown += "".join(refused(tmp_path, "door.password = 'rosebud'\nlimits.requests = 0"))
    shown += repr(Given(("door", "password"), "rosebud", Origin("file", "x")))
    assert "rosebud" not in shown


def test_a_long_value_is_cut_short(tmp_path: Path) -> None:
    (sentence,) = refused(tmp_path, f"door.kind = '{'x' * 1000}'")
    assert len(sentence) < 200


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"[limits\n", "is not TOML"),
        (b"a = 1\na = 2", "is not TOML"),
        (b"a = " + b"[" * 5000, "is not TOML"),
        (b"\xff", "is not UTF-8"),
        (b"#" * (1024 * 1024 + 1), "is larger than"),
    ],
)
def test_a_file_that_is_no_settings_is_refused_in_words(content: bytes, fact: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(InputError, match=fact):
        load(Toy, prefix="TOY", file=tmp_path / "x.toml")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"settings .*/no\.toml cannot be read"):
        load(Toy, prefix="TOY", file=tmp_path / "no.toml")
    with pytest.raises(InputError, match=r"secret .*/no cannot be read"):
        toy(env={"TOY__DOOR__PASSWORD_FILE": f"{tmp_path}/no"})
    with pytest.raises(InputError, match=r"secrets in .*/no cannot be listed"):
        toy(secrets_dir=tmp_path / "no")


def test_a_flag_without_a_value_is_refused() -> None:
    assert parse_set(["a.b=c=d", " e =", "f="]) == {"a.b": "c=d", "e": "", "f": ""}
    for wrong in ("a.b", "=3"):
        with pytest.raises(InputError, match="names no value"):
            parse_set([wrong])


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
Keys = st.sampled_from([key for key, _ in leaves(tree_of(Toy), name="n")])


@given(st.lists(st.tuples(Keys | st.text(max_size=12), Json, st.booleans()), max_size=4))
def test_whatever_is_given_ends_in_settings_or_in_sentences(values: list[tuple[str, object, bool]]) -> None:
    layer = [Given(tuple(key.split(".")), value, Origin("file", "f"), is_text) for key, value, is_text in values]
    with contextlib.suppress(SettingsError):
        loaded = resolve(Toy, [layer])
        assert set(loaded.origins) == set(flat(loaded.settings))
        # What was accepted obeys the schema's types: it survives a strict round trip through them.
        assert (
            msgspec.convert(loaded.settings.limits, Limits, strict=True, from_attributes=True) == loaded.settings.limits
        )


# ---- documentation, differences -------------------------------------------------------------------------------------


def test_the_schema_knows_types_bounds_defaults_and_words() -> None:
    found = schema(Toy)["$defs"]["Limits"]["properties"]["requests"]
    assert found == {
        "description": "How many.", "x-reloadable": True, "type": "integer", "minimum": 1, "maximum": 100, "default": 10
    }  # fmt: skip
    assert schema(Toy)["$defs"]["Limits"]["additionalProperties"] is False


def test_a_field_without_documentation_is_a_bug() -> None:
    class Silent(Section, frozen=True):
        size: int = 1

    with pytest.raises(InvariantViolation, match=r"Silent\.size is not documented"):
        tree_of(Silent)


def test_differences_are_named_and_only_chosen_ones_are_taken_over() -> None:
    before = Toy()
    after = Toy(limits=Limits(requests=5, rate=2), each={"a": Special(size=1)})
    assert [tuple(change) for change in changes(before, after)] == [
        ("limits.requests", True), ("limits.rate", False), ("each", True)
    ]  # fmt: skip
    assert grafted(before, after, lambda key: key == "limits.requests") == Toy(limits=Limits(requests=5))
    assert grafted(before, after, lambda _: True) == after
    assert changes(after, after) == ()
