"""The served models under all their names."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedding_service.engine import examination
from embedding_service.errors import InvalidRequest, ModelNotFound, ModelNotLoaded, Unavailable
from embedding_service.service import canaries
from embedding_service.service.admission import Gate
from embedding_service.service.cache import MemoryCache
from embedding_service.service.compute import Compute
from embedding_service.service.examiner import Examiner
from embedding_service.service.pairs import PairEncoder
from embedding_service.service.prompts import Encoder
from embedding_service.service.vector_space import vector_space
from embedding_service.service.vectors import read_ranges
from embedding_service.types import Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from embedding_service.engine.pool import ModelEngine
    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.service.shared_cache import SharedCache
    from embedding_service.service.vector_space import VectorSpace
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import AliasSettings, ModelOptions
    from embedding_service.types import Floats, Tenant

    Named = tuple["ServedModel", AliasSettings | None]  # and the prompt that its alias implies

STARTING_RETRY_S = 5.0
_LONGEST_NAME = 1000
_FEW_MODELS = 4  # an error names them all
# A request is taken to have at least this share of the tokens that its length suggests.
_LEAST_SHARE = 0.8
# The mean of characters per token follows the last sixteen bulk requests or so.
_FADING = 16


@dataclass(slots=True)
class ServedModel:
    """One model. `encoder` (embeds) or `pairs` (scores) is there once the engine has loaded it.

    So is `space`, where vectors of it live; scores live in none.
    `preparing` counts requests that are being tokenised and will reach the engine in a moment;
    `characters_per_token` is the mean of the last bulk requests. `ranges` (2, dimension) scales
    int8 and uint8, if that was calibrated. `canary_cosines` are the least ones of each replica.
    """

    options: ModelOptions
    engine: ModelEngine
    compute: Compute
    required: bool
    ranges: Floats | None = None
    encoder: Encoder | None = None
    space: VectorSpace | None = None
    pairs: PairEncoder | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    preparing: int = 0
    characters_per_token: float = 4.0
    load_s: float = 0.0
    canary_cosines: dict[int, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The public name."""
        return self.options.model_name

    @property
    def vector_space(self) -> VectorSpace:
        """The space of a model that is loaded and embeds."""
        assert self.space is not None  # noqa: S101 - `open` sets it with the encoder
        return self.space

    @property
    def gate(self) -> Gate:
        """The bound on tokens that wait for this model."""
        return self.compute.gate

    @property
    def names(self) -> tuple[str, ...]:
        """The public name and all aliases."""
        return self.options.names

    @property
    def facts(self) -> ModelFacts | None:
        """The model's properties, once it is loaded and can be used."""
        reader = self.encoder or self.pairs
        return reader.facts if reader else None

    @property
    def ready(self) -> bool:
        """Whether a request would be computed now."""
        return self.facts is not None and self.engine.ready

    @property
    def matryoshka(self) -> tuple[int, ...] | None:
        """Sizes that vectors may be cut to: empty for any, None for no."""
        return self.matryoshka_of(self.facts)

    def matryoshka_of(self, facts: ModelFacts | None) -> tuple[int, ...] | None:
        """Return these sizes for a model that is being opened."""
        if self.options.matryoshka is not None:
            return () if self.options.matryoshka else None
        return facts.matryoshka if facts else None

    def check_room(self, characters: int, most_tokens: int) -> None:
        """Raise `Overloaded` if so many characters will not fit, going by the last requests.

        That is known while the queue is full, before anything is tokenised.
        """
        expected = min(characters / self.characters_per_token, most_tokens)
        self.gate.check(int(_LEAST_SHARE * expected))

    def note_length(self, characters: int, tokens: int) -> None:
        """Learn how long tokens are from a request that has been tokenised."""
        self.characters_per_token += (characters / tokens - self.characters_per_token) / _FADING

    def by_name(self) -> dict[str, Named]:
        """Return the model under each of its names."""
        aliases = {name: (self, prompt) for name, prompt in self.options.aliases.items()}
        return {self.name: (self, None), **aliases}

    def open(self, settings: Settings) -> ModelFacts:
        """Build the tokenizer's side from the facts that the engine sent, and return those.

        Slow for large vocabularies. Raises `ModelNotLoaded` if vectors have not the expected size.
        """
        loaded, expected = self.engine.loaded, self.options.expected_dimension
        facts = loaded.facts
        if expected not in (None, facts.dimension):
            raise ModelNotLoaded(
                f"{self.name}: vectors have {facts.dimension} dimensions, "
                f"and expected_dimension is {expected}; set it to that, or serve another"
            )
        if Output.SCORE in facts.outputs:
            self.compute.space = vector_space(self, None, settings).hex
            self.pairs = PairEncoder(facts, loaded.tokenizer_json, self.options)
        else:
            encoder = Encoder(facts, loaded.tokenizer_json, self.options)
            self.space = vector_space(self, encoder, settings)
            self.compute.space, self.encoder = self.space.hex, encoder
        return facts

    def close(self) -> None:
        """Forget what `open` made of a model that is not served after all."""
        self.encoder = self.pairs = self.space = None

    def embedder(self) -> Encoder:
        """Return the encoder. Raises `Unavailable` while loading; `InvalidRequest` if it scores."""
        if self.encoder is not None:
            return self.encoder
        name = self.name
        if self.engine.dead:
            raise Unavailable(
                f"{name} could not be loaded; see the server's log, or name another model"
            )
        if self.pairs is None:
            loading = f"{name} is still loading and cannot embed yet; try again shortly"
            raise Unavailable(loading, retry_after_s=STARTING_RETRY_S)
        scores = f"{name} scores pairs and does not embed; use /v1/rerank"
        raise InvalidRequest(scores, param="model", code="not_supported_by_model")


class ModelRegistry:
    """Finds a model by any of its names; iterates over the models, the default one first."""

    def __init__(
        self, settings: Settings, engines: Iterable[ModelEngine], shared: SharedCache | None = None
    ) -> None:
        self.shared = shared
        self.cache = _memory_cache(settings)
        self._models = [self._serve(engine, settings) for engine in engines]
        # Readiness depends on the first model unless it says otherwise, on others if they say so.
        self.default.required = self.default.options.required is not False
        self._serve_default = settings.unknown_model == "serve_default"
        self._by_name: dict[str, Named] = {}
        for model in self._models:
            self._by_name |= model.by_name()

    def _serve(self, engine: ModelEngine, settings: Settings) -> ServedModel:
        options = engine.options
        gate = Gate(settings.max_queued_tokens, "tokens")
        isolated = settings.cache_isolation == "tenant"
        compute = Compute(engine, gate, self.cache, self.shared, isolated=isolated)
        ranges = read_ranges(options.calibration_file) if options.calibration_file else None
        model = ServedModel(options, engine, compute, bool(options.required), ranges=ranges)
        pinned = canaries.read(options.canary_file) if options.canary_file else None
        examiner = Examiner(model, settings, pinned)
        engine.have_examined(examiner, every_s=examination.EVERY_S if pinned else None)
        return model

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    @property
    def default(self) -> ServedModel:
        """The first model."""
        return self._models[0]

    def default_for(self, *, scores: bool) -> ServedModel:
        """Return the first model that `scores` pairs, or embeds; the default one if there is none.

        A model that is still loading may be the one, so it comes before the default: BGE-M3 is not
        to score while its reranker loads, on another scale.
        """
        fitting = (model for model in self._models if (model.pairs if scores else model.encoder))
        loading = (model for model in self._models if model.facts is None)
        return next(fitting, None) or next(loading, self.default)

    def get(self, name: str) -> ServedModel | None:
        """Return the model of exactly this name or alias."""
        return self._by_name.get(name, (None, None))[0]

    def find(
        self, name: str | None, tenant: Tenant | None = None, *, scores: bool = False
    ) -> Named:
        """Return the model that a request means, and the prompt its alias implies.

        Where the settings say so, a request without a name, or with one that is not served, means
        the first model that `scores` pairs, or embeds. Raises `ModelNotFound`, which names models
        that the tenant may use, `InvalidRequest`.
        """
        if name is not None and name in self._by_name:
            return self._by_name[name]
        if self._serve_default and len(name or "") <= _LONGEST_NAME:  # it may come back in answers
            return self.default_for(scores=scores), None
        if name is None:
            raise InvalidRequest(
                "you must provide a model parameter",
                param="model",
                code="missing_required_parameter",
            )
        raise self.unknown(name, tenant)

    def unknown(self, name: str, tenant: Tenant | None) -> ModelNotFound:
        """Return the error about a name, with those that the caller may use if they are few."""
        others = [model.name for model in self if tenant and tenant.may_use(model.names)]
        few = f": {', '.join(others)}" if 0 < len(others) <= _FEW_MODELS else ""
        return ModelNotFound(
            f"The model `{name[:100]}` does not exist or you do not have access to it. "
            f"See /v1/models{few}.",
            param="model",
        )


def _memory_cache(settings: Settings) -> MemoryCache | None:
    most_bytes, most = settings.cache_max_bytes, settings.cache_max_entries
    return MemoryCache(most_bytes, settings.cache_ttl_s, max_entries=most) if most_bytes else None
