# SPDX-License-Identifier: GPL-3.0-or-later
"""The vendor's own Python SDK against the stand-in: it holds the control API to the real protocol."""

from __future__ import annotations

import pytest

import lmstudio

KEY = "smollm2"
EMBED_KEY = "text-embedding-nomic-embed"


@pytest.fixture
def client(instance):
    """Return the SDK's client of a running daemon."""
    instance.start()
    with lmstudio.Client(f"127.0.0.1:{instance.published()['port']}") as made:
        yield made


def test_sdk_is_the_version_the_protocol_was_read_from():
    from importlib.metadata import version

    assert version("lmstudio") == "1.5.0"


def test_lists_models_on_disk(client):
    assert {model.model_key: model.type for model in client.list_downloaded_models()} == {
        KEY: "llm",
        EMBED_KEY: "embedding",
    }


def test_loads_lists_and_unloads(client, instance):
    progress = []
    model = client.llm.load_new_instance(KEY, "mine", ttl=None, on_load_progress=progress.append)
    assert progress[-1] == 1.0
    assert [loaded.identifier for loaded in client.list_loaded_models()] == ["mine"]
    assert model.get_info().instance_reference
    assert model.get_context_length() == 2048
    assert instance.loaded()["mine"]["ttlMs"] is None
    model.unload()
    assert client.list_loaded_models() == []


def test_load_settings_arrive(client):
    config = {"contextLength": 512, "flashAttention": True}
    model = client.llm.load_new_instance(KEY, config=config)
    assert (model.get_load_config().context_length, model.get_load_config().flash_attention) == (512, True)


def test_get_or_load_loads_once(client, instance):
    first, second = client.llm.model(KEY), client.llm.model(KEY)
    assert first.identifier == second.identifier == KEY
    assert instance.loaded()[KEY]["ttlMs"] == 3_600_000


def test_second_load_with_an_identifier_fails_with_the_servers_words(client):
    client.llm.load_new_instance(KEY, "mine")
    with pytest.raises(lmstudio.LMStudioServerError, match="already loaded"):
        client.llm.load_new_instance(KEY, "mine")


def test_unknown_model_is_the_sdks_not_found_error(client):
    with pytest.raises(lmstudio.LMStudioModelNotFoundError):
        client.llm.model("nothing")


def test_chats_in_a_stream(client):
    model = client.llm.model(KEY)
    stream = model.respond_stream("ping", config={"maxTokens": 6})
    fragments = [fragment.content for fragment in stream]
    result = stream.result()
    assert len(fragments) == 6
    assert result.content == "".join(fragments)
    assert result.content.startswith("reply ")
    assert result.stats.stop_reason == "maxPredictedTokensReached"
    assert result.stats.predicted_tokens_count == 6


def test_completes_text(client):
    assert "to: once upon" in client.llm.model(KEY).complete("once upon").content


def test_cancelled_stream_frees_the_slot(client, instance):
    instance.add_model("lmfleet/slow/slow.gguf", tokens_per_second=5)
    stream = client.llm.model("slow").respond_stream("ping")
    for _fragment in stream:
        stream.cancel()
    assert stream.result().stats.stop_reason == "userStopped"
    assert instance.loaded()["slow"]["queued"] == 0


def test_embeds(client):
    vector = client.embedding.model(EMBED_KEY).embed("ping")
    assert sum(x * x for x in vector) == pytest.approx(1.0)
