"""/images, /distribution and /auth.

Pulling, loading and saving stream; a pull or load is cancelled when its client goes away, as in dockerd, and what was
downloaded so far is used by the next attempt.

Source: moby ``daemon/server/router/image/image_routes.go``, ``router/distribution`` (API 1.51).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from aiohttp import web

from api.engine_routes.context import EngineContext
from api.errors import BadRequestError, NotServedError
from api.requests import auth_header, filters_of, flag, json_response
from api.streams import Progress, ProgressMessage, answer_with_progress, start_stream
from api.versions import APIVersion, version_of
from runtime.images import Image, RegistryAuth

VIRTUAL_SIZE_UNTIL = APIVersion(1, 43)
TAR = "application/x-tar"


class ImageRoutes:
    """Handlers of images; names contain slashes, hence the ``.+`` in the paths."""

    def __init__(self, context: EngineContext) -> None:
        self._images, self._operations = context.engine.images, context.operations

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/images/json", self.list),
            web.post("/images/create", self.create),
            web.post("/images/load", self.load),
            web.get("/images/get", self.save, allow_head=False),
            web.post("/images/prune", self.prune),
            web.get("/images/{name:.+}/json", self.inspect),
            web.get("/images/{name:.+}/history", self.history),
            web.get("/images/{name:.+}/get", self.save, allow_head=False),
            web.post("/images/{name:.+}/tag", self.tag),
            web.post("/images/{name:.+}/push", self.push),
            web.delete("/images/{name:.+}", self.remove),
            web.get("/distribution/{name:.+}/json", self.distribution),
        ]

    async def list(self, request: web.Request) -> web.Response:
        found = self._images.list(filters=filters_of(request), all=flag(request, "all"))
        return json_response([_sized(image, version_of(request)) for image in found])

    async def inspect(self, request: web.Request) -> web.Response:
        _refuse_platform(request)
        return json_response(_sized(self._images.inspect(request.match_info["name"]), version_of(request)))

    async def history(self, request: web.Request) -> web.Response:
        _refuse_platform(request)
        return json_response(self._images.history(request.match_info["name"]))

    async def tag(self, request: web.Request) -> web.Response:
        repository, tag = request.query.get("repo", ""), request.query.get("tag", "")
        if not repository:
            raise BadRequestError("repository name must have at least one component")
        name, target = request.match_info["name"], f"{repository}:{tag}" if tag else repository
        await self._operations.run_to_end(self._images.tag(name, target), name="image.tag")
        return web.Response(status=201)

    async def remove(self, request: web.Request) -> web.Response:
        _refuse_platform(request, "platforms")
        force, prune = flag(request, "force"), not flag(request, "noprune")
        change = self._images.remove(request.match_info["name"], force=force, prune=prune)
        return json_response(await self._operations.run_to_end(change, name="image.remove"))

    async def prune(self, request: web.Request) -> web.Response:
        report = await self._operations.run_to_end(self._images.prune(filters=filters_of(request)), name="image.prune")
        return json_response({"ImagesDeleted": report.ImagesDeleted or None, "SpaceReclaimed": report.SpaceReclaimed})

    async def distribution(self, request: web.Request) -> web.Response:
        found = await self._images.distribution_inspect(request.match_info["name"], registry_auth(auth_header(request)))
        return json_response(found.to_api())

    # ------------------------------------------------------------ transfer

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Pull (``fromImage``) or import (``fromSrc=-``)."""
        if request.query.get("fromImage"):
            return await self._pull(request)
        if "fromSrc" in request.query:
            return await self._import(request)
        raise BadRequestError("one of fromImage and fromSrc is needed")

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        reference = pull_reference(request.query["fromImage"], request.query.get("tag", ""))
        auth = registry_auth(auth_header(request))
        platform = request.query.get("platform") or None

        async def work(progress: Progress) -> Image:
            return await self._images.pull(reference, platform=platform, auth=auth, progress=progress)

        return await answer_with_progress(request, work)

    async def push(self, request: web.Request) -> web.StreamResponse:
        """``tag`` names what to push; without it and without one in the name every tag is meant, which is not served."""
        _refuse_platform(request)
        reference = pull_reference(request.match_info["name"], request.query.get("tag", ""))
        auth = registry_auth(auth_header(request))

        async def work(progress: Progress) -> str:
            return await self._images.push(reference, auth=auth, progress=progress)

        return await answer_with_progress(request, work)

    async def _import(self, request: web.Request) -> web.StreamResponse:
        if request.query["fromSrc"] != "-":
            raise NotServedError("importing from a URL is not served: download it and pipe it in")

        async def work(progress: Progress) -> Image:
            return await self._images.import_tar(
                request.content.iter_any(),
                repo=request.query.get("repo", ""),
                tag=request.query.get("tag", ""),
                changes=request.query.getall("changes", []),
                message=request.query.get("message", ""),
                platform=request.query.get("platform") or None,
            )

        def finish(image: Image) -> ProgressMessage:
            return {"status": image.id}

        return await answer_with_progress(request, work, finish)

    async def load(self, request: web.Request) -> web.StreamResponse:
        _refuse_platform(request)
        quiet = flag(request, "quiet")

        async def work(progress: Progress) -> None:
            source = request.content.iter_any()
            for name in await self._images.load(source, progress=None if quiet else progress):
                image_id = self._images.get(name).id
                text = f"Loaded image ID: {name}\n" if name == image_id else f"Loaded image: {name}\n"
                progress({"stream": text})

        return await answer_with_progress(request, work)

    async def save(self, request: web.Request) -> web.StreamResponse:
        _refuse_platform(request)
        if "name" in request.match_info:
            names = [request.match_info["name"]]
        else:
            names = request.query.getall("names", [])
        if not names:
            raise BadRequestError("no image is named")
        chunks = self._images.save(names)
        response = await start_stream(request, TAR)
        async for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()
        return response


def pull_reference(image: str, tag: str) -> str:
    """What to pull or push: ``tag`` may be a digest, and wins over one in the name, as in dockerd.

    Raises: NotServedError for neither, which means every tag.
    """
    if tag:
        return f"{image}@{tag}" if ":" in tag else f"{without_tag(image)}:{tag}"
    if "@" in image or ":" in image.rpartition("/")[2]:
        return image
    raise NotServedError(f"all tags of a repository at once are not served: name one, such as {image}:latest")


def without_tag(image: str) -> str:
    """The repository of a name: its tag and digest taken off."""
    head, slash, last = image.rpartition("/")
    return f"{head}{slash}{last.partition('@')[0].partition(':')[0]}"


def registry_auth(fields: Mapping[str, object]) -> RegistryAuth | None:
    """Credentials from the object that clients send; None when there are none. Raises: BadRequestError."""
    values = {key.lower(): value for key, value in fields.items() if isinstance(value, str) and value}
    username, password = values.get("username", ""), values.get("password", "")
    if not username and "auth" in values:
        try:
            username, _, password = base64.b64decode(values["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise BadRequestError("invalid registry credentials: auth is not base64 of user:password") from None
    auth = RegistryAuth(
        username=username,
        password=password,
        identity_token=values.get("identitytoken", ""),
        registry_token=values.get("registrytoken", ""),
        server_address=values.get("serveraddress", ""),
    )
    return auth if any((username, auth.identity_token, auth.registry_token)) else None


def _sized(image: dict[str, object], version: APIVersion) -> dict[str, object]:
    """``VirtualSize`` left the API with 1.44; older clients show it."""
    return image if version > VIRTUAL_SIZE_UNTIL else image | {"VirtualSize": image.get("Size", 0)}


def _refuse_platform(request: web.Request, name: str = "platform") -> None:
    if request.query.get(name):
        raise NotServedError("choosing a platform inside a multi-platform image is not served: one is kept, the pulled")
