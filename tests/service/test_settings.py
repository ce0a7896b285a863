import pytest

from service.settings import Settings, SettingsError, load_settings


def test_flag_wins_over_environment_wins_over_default(monkeypatch):
    assert load_settings({}).max_texts == 1024
    monkeypatch.setenv("REALCE_MAX_TEXTS", "7")
    assert load_settings({}).max_texts == 7
    assert load_settings({"max_texts": "9"}).max_texts == 9


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"device": "tpu"}, "--device=tpu: .*'auto', 'cpu' or 'cuda'"),
        ({"grpc": "localhost"}, "--grpc=localhost: must be HOST:PORT"),
        ({"grpc": "127.0.0.1:99999"}, "port from 0 to 65535"),
        ({"max_texts": "0"}, "--max-texts=0: .*greater than or equal to 1"),
        ({"max_texts": "many"}, "--max-texts=many: .*valid integer"),
        ({"grace_s": "-1"}, "--grace-s=-1"),
        ({"grpc": ""}, "--grpc=: must be HOST:PORT"),
        ({"http": "8080"}, "--http=8080: must be HOST:PORT with a port from 0 to 65535"),
        (
            {"max_batch_tokens": "900", "max_queue_tokens": "100"},
            "^--max-batch-tokens=900 exceeds --max-queue-tokens=100$",
        ),
        (
            {"max_text_bytes": "900", "max_request_bytes": "100"},
            "^--max-text-bytes=900 exceeds --max-request-bytes=100$",
        ),
        (
            {"max_answer_bytes": "900", "max_held_bytes": "100"},
            "^--max-answer-bytes=900 exceeds --max-held-bytes=100$",
        ),
        ({"max_texts": str(1 << 32)}, "--max-texts=4294967296: .*less than 4294967296"),
        ({"max_waiting_calls": str(1 << 31)}, "--max-waiting-calls=2147483648: .*less than"),
    ],
)
def test_impossible_values_are_refused_with_key_value_and_reason(flags, reason):
    with pytest.raises(SettingsError, match=reason):
        load_settings(flags)


def test_a_bad_variable_is_named_as_the_variable(monkeypatch):
    monkeypatch.setenv("REALCE_THREADS", "-3")
    with pytest.raises(SettingsError, match=r"REALCE_THREADS=-3: .*greater than or equal to 0"):
        load_settings({})


def test_unknown_variables_are_refused(monkeypatch):
    monkeypatch.setenv("REALCE_MAX_TEXT", "5")
    with pytest.raises(SettingsError, match="REALCE_MAX_TEXT: no such setting; there are"):
        load_settings({})


def test_a_misspelt_variable_is_told_what_was_meant(monkeypatch):
    monkeypatch.setenv("REALCE_GRACE", "5")
    with pytest.raises(SettingsError, match=r"Did you mean REALCE_GRACE_S\?"):
        load_settings({})


def test_all_that_is_wrong_is_told_at_once(monkeypatch):
    monkeypatch.setenv("REALCE_THREADS", "-3")
    with pytest.raises(SettingsError, match=r"^--device=tpu: .*; REALCE_THREADS=-3: ") as refused:
        load_settings({"device": "tpu"})
    assert str(refused.value).count(";") == 1


@pytest.mark.parametrize(
    ("flags", "variable", "told"),
    [
        ({"threads": "2"}, "3", "--threads=2"),
        ({}, "3", "REALCE_THREADS=3"),
        ({}, None, "--threads=0 (the default)"),
    ],
)
def test_a_setting_is_told_as_it_was_given(monkeypatch, flags, variable, told):
    if variable:
        monkeypatch.setenv("REALCE_THREADS", variable)
    monkeypatch.setenv("REALCE_MAX_TEXTS", "7")
    assert load_settings(flags).given("threads") == told


def test_every_setting_is_described():
    assert all(field.description for field in Settings.model_fields.values())
