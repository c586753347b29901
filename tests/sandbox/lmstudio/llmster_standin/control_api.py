# SPDX-License-Identifier: GPL-3.0-or-later
"""The control API: JSON messages on WebSockets, one per namespace (/system, /llm, /embedding…).

``rpcCall`` → ``rpcResult``/``rpcError``; ``channelCreate`` → ``channelSend``… → ``channelClose``/``channelError``.
"""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import closing, suppress

from llmster_standin import catalog, home, loadconfig, repository
from llmster_standin.engine_fake import Request, count_tokens, plain
from llmster_standin.inference import RefusedError, pieces, vectors
from llmster_standin.manager import LoadError, ModelNotFoundError
from llmster_standin.serving import PortTakenError
from llmster_standin.waiting import CancelledError, Watch
from llmster_standin.websocket import ClosedError


class RpcError(Exception):
    """An error told to the client: title, and the code SDKs tell errors apart by."""

    def __init__(self, title, code=None):
        super().__init__(title)
        self.details = {"title": title, "rootTitle": title}
        if code:
            self.details["displayData"] = {"code": code}


def _snake(message):
    """Return the endpoint of a message as part of a method name: listLoaded → list_loaded."""
    return re.sub(r"[A-Z]", lambda letter: "_" + letter.group().lower(), str(message.get("endpoint")))


def _not_found(name):
    return RpcError(f'No model found that matches "{name}".', "generic.noModelMatchingQuery")


class Session:
    """One WebSocket of one client."""

    def __init__(self, app, namespace, websocket):
        self.app = app
        self.namespace = namespace
        self.websocket = websocket
        self._channels = {}

    def run(self):
        """Serve until the client leaves; whatever it started is cancelled then."""
        try:
            hello = self.websocket.receive()
            if not isinstance(hello, dict) or hello.get("authVersion") != 1:
                self.websocket.send({"success": False, "error": {"title": "Unsupported authentication version"}})
                return
            self.websocket.send({"success": True})
            while True:
                self._dispatch(self.websocket.receive())
        except (ClosedError, ValueError):
            pass
        finally:
            for watch in list(self._channels.values()):
                watch.cancel("client disconnected")

    def _dispatch(self, message):
        kind = message.get("type")
        if kind == "rpcCall":
            threading.Thread(target=self._rpc, args=(message,), daemon=True).start()
        elif kind == "channelCreate":
            watch = self._channels[message["channelId"]] = Watch()
            threading.Thread(target=self._channel, args=(message, watch), daemon=True).start()
        elif kind == "channelSend":
            watch = self._channels.get(message.get("channelId"))
            if watch and (message.get("message") or {}).get("type") in ("cancel", "stop"):
                watch.cancel("cancelled by the client")
        else:
            # A message the daemon does not know is never answered: clients of another version wait for ever.
            return

    def _rpc(self, message):
        handler = getattr(self, "_rpc_" + _snake(message), None)
        answer = {"type": "rpcResult", "callId": message.get("callId")}
        try:
            if handler is None:
                return  # see _dispatch
            result = handler(message.get("parameter") or {})
            if result is not None:
                answer["result"] = result
        except (RpcError, LoadError, RefusedError, PortTakenError) as error:
            details = getattr(error, "details", None) or {"title": str(error), "rootTitle": str(error)}
            answer = {"type": "rpcError", "callId": message.get("callId"), "error": details}
        with suppress(ClosedError):
            self.websocket.send(answer)

    def _channel(self, message, watch):
        number = message["channelId"]

        def send(content):
            self.websocket.send({"type": "channelSend", "channelId": number, "message": content})

        handler = getattr(self, "_channel_" + _snake(message), None)
        try:
            with watch:
                if handler is None:
                    return
                handler(message.get("creationParameter") or {}, send, watch)
                self.websocket.send({"type": "channelClose", "channelId": number})
        except (RpcError, LoadError, RefusedError, CancelledError) as error:
            details = getattr(error, "details", None) or {"title": str(error), "rootTitle": str(error)}
            with suppress(ClosedError):
                self.websocket.send({"type": "channelError", "channelId": number, "error": details})
        except ClosedError:
            pass
        finally:
            self._channels.pop(number, None)

    # -- namespace system ------------------------------------------------------------------------------------

    def _rpc_list_downloaded_models(self, parameter):
        del parameter
        return [model.info() for model in catalog.scan()]

    def _rpc_daemon_info(self, parameter):
        del parameter
        return {"pid": os.getpid(), "isDaemon": True, "version": self.app.version}

    def _rpc_server_status(self, parameter):
        del parameter
        return {"running": self.app.serving.port is not None, "port": self.app.serving.port}

    def _rpc_start_http_server(self, parameter):
        config = home.server_config()
        port = int(parameter.get("port") if parameter.get("port") is not None else config["port"])
        address = parameter.get("networkInterface") or "127.0.0.1"
        self.app.start_server(address, port, bool(parameter.get("cors")))
        return {"port": port}

    def _rpc_stop_http_server(self, parameter):
        del parameter
        running = self.app.serving.port is not None
        self.app.serving.stop()
        return {"stopped": running}

    def _rpc_shutdown(self, parameter):
        del parameter
        threading.Timer(0.05, self.app.request_stop).start()

    # -- namespaces llm and embedding ------------------------------------------------------------------------

    def _rpc_list_loaded(self, parameter):
        del parameter
        instances = self.app.manager.instances()
        return [i.sdk_info() for i in instances if self.namespace == "system" or i.model.type == self.namespace]

    def _specified(self, parameter):
        specifier = parameter.get("specifier") or parameter.get("modelSpecifier") or {}
        query = specifier.get("query") or {}
        name = specifier.get("instanceReference") or query.get("identifier")
        if name:
            instance = self.app.manager.get(name)
            if instance is None:
                raise _not_found(name)
            return instance
        loaded = [i for i in self.app.manager.instances() if i.model.type == self.namespace]
        if not loaded:
            raise _not_found("any")
        return loaded[0]

    def _rpc_get_model_info(self, parameter):
        try:
            return self._specified(parameter).sdk_info()
        except RpcError:
            if parameter.get("throwIfNotFound"):
                raise
            return None

    def _rpc_get_load_config(self, parameter):
        return _as_fields(self._specified(parameter).config)

    def _rpc_unload_model(self, parameter):
        identifier = str(parameter.get("identifier"))
        if not self.app.manager.unload(identifier):
            raise _not_found(identifier)

    def _rpc_tokenize(self, parameter):
        self._specified(parameter)
        return {"tokens": list(range(count_tokens(parameter.get("inputString") or "")))}

    def _rpc_count_tokens(self, parameter):
        self._specified(parameter)
        return {"tokenCount": count_tokens(parameter.get("inputString") or "")}

    def _rpc_embed_string(self, parameter):
        with Watch() as watch:
            vector = vectors(self.app, self._specified(parameter), [parameter.get("inputString") or ""], watch)[0]
        return {"embedding": vector}

    def _rpc_estimate_model_usage(self, parameter):
        model = catalog.find(parameter.get("modelKey"))
        if model is None:
            raise _not_found(parameter.get("modelKey"))
        config = loadconfig.effective(model, _overrides(parameter))
        on_gpu, total = loadconfig.estimate(model, config)
        return {"gpuBytes": on_gpu, "totalBytes": total, "fits": self.app.manager.fits(total)}

    def _channel_load_model(self, parameter, send, watch):
        model = catalog.find(parameter.get("modelKey"))
        if model is None:
            raise _not_found(parameter.get("modelKey"))
        send({"type": "resolved", "info": model.info()})
        instance = self.app.manager.load(
            model,
            parameter.get("identifier"),
            _overrides(parameter),
            parameter.get("ttlMs"),
            watch=watch,
            progress=lambda share: send({"type": "progress", "progress": share}),
        )
        send({"type": "success", "info": instance.sdk_info()})

    def _channel_get_or_load(self, parameter, send, watch):
        identifier = parameter.get("identifier")
        instance = self.app.manager.get(identifier)
        if instance:
            send({"type": "alreadyLoaded", "info": instance.sdk_info()})
            return

        def started(model):
            send({"type": "startLoading", "identifier": model.key, "info": model.info()})
            send({"type": "loadProgress", "progress": 0.0})

        try:
            ttl = parameter.get("loadTtlMs") or home.JIT_TTL_MS
            instance = self.app.manager.get_or_load(identifier, ttl, _overrides(parameter), watch, started)
        except ModelNotFoundError:
            raise _not_found(identifier) from None
        send({"type": "loadSuccess", "info": instance.sdk_info()})

    def _channel_predict(self, parameter, send, watch):
        instance = self._specified(parameter)
        request, settings = _prediction(parameter)
        began = time.monotonic()
        first = None
        reason = None
        try:
            with closing(pieces(self.app, instance, request, watch)) as stream:
                for piece in stream:
                    if first is None:
                        first = time.monotonic()
                        send({"type": "promptProcessingProgress", "progress": 1.0})
                    fragment = {"content": piece, "tokensCount": 1, "containsDrafted": False}
                    send({"type": "fragment", "fragment": dict(fragment, reasoningType="none")})
        except CancelledError as error:
            reason = "modelUnloaded" if "unloaded" in str(error) else "userStopped"
        reasons = {"stop": "eosFound", "length": "maxPredictedTokensReached"}
        tokens = request.predicted_tokens
        seconds = time.monotonic() - (first or began)
        stats = {
            "stopReason": reason or reasons.get(request.finish, "eosFound"),
            "tokensPerSecond": tokens / seconds if seconds > 0 else 0.0,
            "timeToFirstTokenSec": (first or began) - began,
            "promptTokensCount": request.prompt_tokens,
            "predictedTokensCount": tokens,
            "totalTokensCount": request.prompt_tokens + tokens,
        }
        done = {"type": "success", "stats": stats, "modelInfo": instance.sdk_info()}
        done.update(loadModelConfig=_as_fields(instance.config), predictionConfig=_as_fields(settings))
        send(done)

    # -- namespace repository --------------------------------------------------------------------------------

    def _rpc_fuzzy_find_staff_picks(self, parameter):
        return repository.staff_picks(str(parameter.get("searchTerm") or ""))

    def _channel_download_artifact(self, parameter, send, watch):
        try:
            option = repository.chosen(parameter)
        except repository.RepositoryError as error:
            raise RpcError(str(error)) from None
        # It belongs to the daemon: a client that goes away does not end it.
        download = repository.Download(parameter["owner"], parameter["name"], option, self.app.log)
        while not download.wait(0.2):
            send({"type": "progress", **download.state()})
            watch.check()
        if download.error:
            raise RpcError(f"Download failed: {download.error}")
        send({"type": "success", "files": download.fetched})

    # -- namespace diagnostics -------------------------------------------------------------------------------

    def _channel_stream_logs(self, parameter, send, watch):
        del parameter
        with self.app.listening(lambda event: send({"type": "log", "log": event})):
            while True:
                watch.wait()


def _as_fields(config):
    return {"fields": [{"key": key, "value": value} for key, value in sorted(config.items())]}


def _overrides(parameter):
    values = {}
    for layer in (parameter.get("loadConfigStack") or {}).get("layers") or []:
        values.update(loadconfig.fields_of(layer.get("config")))
    return values


def _prediction(parameter):
    """Return (Request, {setting: value}) of a predict channel."""
    settings = {}
    complete = False
    for layer in (parameter.get("predictionConfigStack") or {}).get("layers") or []:
        complete = complete or layer.get("layerName") == "completeModeFormatting"
        settings.update(loadconfig.fields_of(layer.get("config")))
    turns = (parameter.get("history") or {}).get("messages") or []
    messages = [{"role": turn.get("role"), "content": plain(turn.get("content"))} for turn in turns]
    limit = settings.get("llm.prediction.maxPredictedTokens") or {}
    options = {"temperature": settings["llm.prediction.temperature"]} if _is_number(settings) else {}
    request = Request(
        None if complete else messages,
        "".join(m["content"] for m in messages) if complete else None,
        limit.get("value") if isinstance(limit, dict) and limit.get("checked") else None,
        settings.get("llm.prediction.stopStrings") or (),
        options,
    )
    return request, settings


def _is_number(settings):
    return isinstance(settings.get("llm.prediction.temperature"), (int, float))
