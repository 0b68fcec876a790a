# SPDX-License-Identifier: MIT
"""Whether a module computes what a recipe says, by trying a copy of it on inputs that show a difference.

The copy has random weights and shares nothing with the module. It runs in training and in evaluation, with many samples
and one, on small, saturating, huge and non-finite x, in four dtypes. Outputs, their dtype and strides, and gradients of
x and of every parameter must be those of the reference, and x must be left as it was. In float64, where casts are left
out, the numbers agree to 1e-9, so that a clamp at 20 or an epsilon of 1e-5 shows.
"""

import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import reference
from .notes import Notes
from .python_code import never_read
from .recipe import Recipe
from .replica import HOLDERS, paths_of, replica
from .swap import own_class
from .trial import AUTOCAST_DTYPE, LeftAlone, isolated, under_autocast, without_side_effects
from .witness import Witness

# Positions of x by its rank: images, sequences, volumes; small ones, a single one, many, enough to add up to 65504.
_SIZES = {
    4: ((5, 6), (4, 7), (1, 1), (66, 70), (15, 16)),
    3: ((25,), (7,), (1,), (4620,), (240,)),
    5: ((3, 4, 5), (2, 3, 3), (1, 1, 1), (7, 34, 36), (4, 6, 10)),
}
_MANY_SAMPLES, _MANY_CHANNELS = 40, 520
ELSEWHERE = "Use eca_cuda.inductor.enable(): it looks for ECA in what is compiled, however it is divided"
_LOWER_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def compare(module: nn.Module, candidates: list[Recipe]) -> Recipe:
    """The candidate that ``module`` computes, for x of at least one rank. Raises LeftAlone with the reason."""
    takes, notes = _Arguments(own_class(module)), Notes(module)
    found: dict[int, Recipe] = {}
    refusals: list[tuple[int, Exception]] = []  # and how much it had agreed in before
    with isolated():
        for channels_dim, rank in itertools.product((1, -1), _SIZES):
            if notes.objection or (found and channels_dim == -1):
                break
            recipe = _match(module, takes, notes, candidates, rank, channels_dim, refusals)
            if recipe is not None:
                found[rank] = recipe
    if found and not notes.objection:
        recipe = next(iter(found.values()))
        ranks = tuple(rank for rank, other in found.items() if other == recipe)
        return replace(recipe, ranks=ranks, basis=notes.basis(module, paths_of(module)))
    # A reason says more than an error, which for x of another rank is only natural; the later it came the more.
    _, refusal = max(refusals, key=lambda r: (isinstance(r[1], LeftAlone), r[0], not isinstance(r[1], OfAnotherKind)))
    if isinstance(refusal, LeftAlone):
        raise type(refusal)(str(refusal))  # a new one: its traceback would hold the list that it is in
    raise OfAnotherKind(f"it could not be tried: {(str(refusal) or type(refusal).__name__).splitlines()[0]}")


class OfAnotherKind(LeftAlone):
    """It is no function from maps to maps: perhaps a part of one that is."""


class _Arguments:
    """What a forward takes: x, and others. Those without a default must not matter; they are never read."""

    def __init__(self, kind: type[nn.Module]) -> None:
        if kind.forward is nn.Module.forward:
            raise OfAnotherKind("it has no forward: what calls its layers is elsewhere")
        try:
            given = list(inspect.signature(kind.forward).parameters.values())[1:]
        except (TypeError, ValueError) as error:
            raise LeftAlone(f"it could not be tried: {error}") from error
        self.all = [a for a in given if a.kind is a.POSITIONAL_OR_KEYWORD]
        unread = never_read(kind.forward)
        needed = [a for a in given if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
        if not self.all or given[0] is not self.all[0] or not {a.name for a in needed[1:]} <= unread:
            raise LeftAlone(f"its forward takes ({', '.join(map(str, given))}), expected one argument")
        self.x = self.all[0].name
        self.others = tuple(a.name for a in self.all[1:])
        self.unread = frozenset(unread)
        self.none_by_default = frozenset(a.name for a in given if a.default is None)
        self.given = {a.name: object() for a in needed[1:]}


def _match(
    module: nn.Module,
    takes: _Arguments,
    notes: Notes,
    candidates: list[Recipe],
    rank: int,
    channels_dim: int,
    refusals: list[tuple[int, Exception]],
) -> Optional[Recipe]:
    """The candidate for x of this rank, tried with the likeliest number of channels, or else with those it names."""
    for i, c in enumerate(_channels(module)):
        trial = None
        try:
            trial = _Trial(module, takes, notes, rank, channels_dim, c)
            recipe = trial.match(candidates)
            return recipe if i == 0 else replace(recipe, channels=c)
        except Exception as error:  # whatever a stranger's forward may raise; its traceback would keep the model alive
            refusals.append((trial.agreed if trial else 0, error.with_traceback(None)))
            error.__context__ = error.__cause__ = None
            if notes.objection:  # which holds for every x
                break
    return None


def _channels(module: nn.Module) -> list[int]:
    """As many as the layers ask for; or else some, and then all numbers among the attributes."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv1d, nn.Linear))]
    c = max(m.in_features if isinstance(m, nn.Linear) else m.in_channels for m in layers)
    longest = max(m.kernel_size[0] for m in layers if isinstance(m, nn.Conv1d))
    numbers = {n for m in module.modules() for n in vars(m).values() if type(n) is int and longest < n <= 2**14}
    return [c] if c > 1 else [max(16, 2 * longest), *sorted(numbers, reverse=True)]


class _Trial:
    """A copy of a module, and x of one rank for it."""

    def __init__(
        self, module: nn.Module, takes: _Arguments, notes: Notes, rank: int, channels_dim: int, channels: int
    ) -> None:
        self.takes, self.notes, self.rank, self.channels_dim, self.channels = takes, notes, rank, channels_dim, channels
        self.generator = torch.Generator().manual_seed(0)
        self.fixes_channels = self.asks_for_dtype = False
        self.says: Optional[torch.dtype] = None  # what tensors answer when they are asked for their dtype
        self.agreed = 0  # how often its outputs were a candidate's
        self.paths = paths_of(module)
        self.copy = replica(module, notes, self.paths, self.generator)

    def match(self, candidates: list[Recipe]) -> Recipe:
        """The one candidate that the copy computes in all that is tried."""
        with self.notes.taken():
            candidates = self.agreeing(candidates, self.draw(3, 0, 0.5), "", True, True)
            candidates = self.agreeing_everywhere(candidates)
            if self.asks_for_dtype:
                for self.says in _LOWER_DTYPES:
                    candidates = self.agreeing_everywhere(candidates)
                self.says = None
            recipe = candidates[0]
            self.check_many_channels(recipe)
            takes_one_channel = self.takes_one_channel(recipe)
            self.check_layouts(recipe)
            self.check_dtypes(recipe)
            kept = self.check_mixed_dtypes(recipe)
        options = dict(recipe.options) | ({"channels_dim": -1} if self.channels_dim == -1 else {})
        channels = self.channels if self.fixes_channels else None
        return replace(
            recipe,
            options=options,
            channels=channels,
            takes_one_channel=takes_one_channel,
            argument=self.takes.x,
            others=self.takes.others,
            unread=self.takes.unread,
            none_by_default=self.takes.none_by_default,
            under_autocast=kept,
        )

    def agreeing_everywhere(self, candidates: list[Recipe]) -> list[Recipe]:
        """Those that the copy computes for all inputs, in training and in evaluation."""
        for where, x, differentiated in self.inputs():
            for training in self.modes():
                candidates = self.agreeing(candidates, x, where, training, differentiated)
        return candidates

    def draw(self, n: int, which: int, scale: float, channels: Optional[int] = None) -> Tensor:
        """Maps whose means differ from channel to channel by about ``scale``."""
        size = _SIZES[self.rank][which]
        shape = (n, channels or self.channels, *size)
        x, means = (
            torch.randn(s, dtype=torch.float64, generator=self.generator)
            for s in (shape, (*shape[:2], *[1] * len(size)))
        )
        return self.turned((x + means) * scale).contiguous()

    def modes(self) -> tuple[bool, ...]:
        """Training and evaluation, or one of them where nothing asks for it."""
        has_parametrizations = any(map(parametrize.is_parametrized, self.copy.modules()))
        return (True, False) if self.notes.reads_training or has_parametrizations else (False,)

    def turned(self, x: Tensor) -> Tensor:
        """To the order of dimensions that the module takes."""
        return x.movedim(1, self.channels_dim)

    def inputs(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Where a difference would be, x, and whether to differentiate."""
        yield "", self.draw(2, 1, 0.5), True
        yield " for one sample", self.draw(1, 0, 8.0), True
        yield " for large x", self.draw(2, 0, 1e3), False
        yield " for huge x", self.draw(2, 2, 1e200), False
        yield " for many positions", self.draw(1, 3, 1.0), False
        yield " for many samples", self.draw(_MANY_SAMPLES, 1, 1.0), False
        constant = self.constant()
        yield " for constant and tiny x", self.turned(constant).contiguous(), False
        yield " for constant x", self.turned(torch.ones_like(constant)).contiguous(), False
        x = self.draw(2, 1, 1.0)
        maps = x.movedim(self.channels_dim, 1).flatten(2)
        maps[0, 0], maps[0, -1], maps[1, 0, 0], maps[1, -1, 0] = math.nan, math.inf, math.inf, -math.inf
        yield " where x is not finite", x, False

    def constant(self) -> Tensor:
        """Maps of one number each, zeros among them, and tiny ones."""
        x = torch.ones(2, self.channels, *_SIZES[self.rank][0], dtype=torch.float64)
        x[0, ::2], x[1] = 0, x[1] * 1e-20
        return x

    def run(self, x: Tensor, autocast: Optional[str] = None) -> Tensor:
        """What the copy returns, perhaps under a device's autocast; LeftAlone for whatever it does besides."""
        witness = Witness(self.channels, keeps_double=x.dtype == torch.float64, says=self.says)
        inside = [m for m in map(self.copy.get_submodule, self.paths) if not isinstance(m, HOLDERS)]
        parameters = [(p, p.detach().clone()) for p in self.copy.parameters()]
        before = x.detach().clone()
        with without_side_effects(*inside), under_autocast(autocast), witness:
            y = self.copy.forward(x, **self.takes.given)  # which is what convert exchanges
        if objection := witness.objection or self.notes.objection:
            raise LeftAlone(objection)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise OfAnotherKind(f"its output is not a tensor of the shape of its input. {ELSEWHERE}")
        if not torch.equal(x.detach().nan_to_num(), before.nan_to_num()):
            raise LeftAlone("its forward writes into x")
        if any(
            now is not p or not torch.equal(now, old)
            for now, (p, old) in zip(self.copy.parameters(), parameters, strict=True)
        ):
            raise LeftAlone("its forward writes into its parameters")
        self.fixes_channels = self.fixes_channels or witness.fixes_channels
        self.asks_for_dtype = self.asks_for_dtype or witness.asks_for_dtype
        return y

    def agreeing(
        self, candidates: list[Recipe], x: Tensor, where: str, training: bool, differentiated: bool
    ) -> list[Recipe]:
        """Those of the candidates whose outputs, and perhaps gradients, are the copy's."""
        self.copy.train(training)
        leaf = x.clone().requires_grad_(differentiated)
        x = leaf.clone()  # which the forward may write into, were it to do so
        # Where a weight is computed (by a parametrization), once for both.
        with parametrize.cached(), torch.set_grad_enabled(differentiated):
            candidates[0].parameters(self.copy, refresh=False)
            y = self.run(x)
            expected = [self.reference(recipe, x) for recipe in candidates]
            errors = [_error(y, other) for other in expected]
            agreeing = [i for i, error in enumerate(errors) if error == 0]
            if not agreeing:
                kinds = ", ".join(type(m).__name__ for m in self.copy.children())
                off = f"off by {min(errors):.1e} from the nearest variant"
                raise LeftAlone(f"it computes something else{where}: {off} ({kinds})")
            if differentiated:
                self.check_gradients(leaf, y, expected[agreeing[0]], where)
            elif y.requires_grad:
                raise LeftAlone("its forward switches gradients on")
        self.agreed += 1
        return [candidates[i] for i in agreeing]

    def reference(self, recipe: Recipe, x: Tensor) -> Tensor:
        parameters = recipe.parameters(self.copy, refresh=False)
        y = getattr(reference, recipe.variant)(x.movedim(self.channels_dim, 1), *parameters, **recipe.options)
        return self.turned(y)

    def check_gradients(self, x: Tensor, y: Tensor, expected: Tensor, where: str) -> None:
        if not y.requires_grad:
            raise LeftAlone("its output has no gradient")
        wanted = {"x": x, **dict(self.copy.named_parameters())}
        grad_y = torch.randn(y.shape, dtype=y.dtype, generator=self.generator)
        theirs, ours = (
            torch.autograd.grad(output, list(wanted.values()), grad_y, retain_graph=True, allow_unused=True)
            for output in (y, expected)
        )
        for name, a, b in zip(wanted, theirs, ours, strict=True):
            a, b = (torch.zeros_like(wanted[name]) if grad is None else grad for grad in (a, b))
            error = float((a - b).abs().max()) if a.numel() else 0.0
            if not error <= 1e-6 * float(b.abs().max() if b.numel() else 0):  # F.hardsigmoid's is off by 1e-8
                raise LeftAlone(f"its gradient by {name} is another{where}: off by {error:.1e}")

    def check_many_channels(self, recipe: Recipe) -> None:
        if not self.fixes_channels:
            x = self.draw(2, 1, 1.0, _MANY_CHANNELS)
            try:
                with torch.no_grad():
                    self.run(x)
            except LeftAlone:
                raise
            except Exception:  # it takes no other number than that which was tried
                self.fixes_channels = True
            else:
                self.agreeing([recipe], x, " for many channels", False, False)

    def takes_one_channel(self, recipe: Recipe) -> bool:
        """Whether it computes the same for a single channel, if it may come."""
        try:
            return self.fixes_channels or bool(self.agreeing([recipe], self.draw(2, 1, 1.0, 1), "", False, False))
        except Exception:
            return False

    def check_layouts(self, recipe: Recipe) -> None:
        """Outputs have the strides of x, also where channels or the last but one dimension are the innermost."""
        x = self.draw(3, 1, 0.5)
        dims = range(x.dim())
        for order in {(*dims,), (0, *dims[2:], 1), (*dims[:-2], dims[-1], dims[-2])}:
            turned = x.permute(order).contiguous().permute([order.index(d) for d in dims])
            with torch.no_grad(), parametrize.cached():
                try:
                    y = self.run(turned)
                except LeftAlone:
                    raise
                except Exception:  # a view that is not possible then
                    continue
                if y.stride() != turned.stride() or _error(y, self.reference(recipe, turned)) != 0:
                    raise LeftAlone(f"its output has not the strides of x where these are {turned.stride()}")

    def check_dtypes(self, recipe: Recipe) -> None:
        """In float32, and in float16 and bfloat16 if it runs in these: the dtype, and no other way of computing."""
        small, many = self.draw(3, 0, 0.5), self.draw(1, 4, 1.0) + 300
        for dtype in _LOWER_DTYPES:
            for training in self.modes():
                self.copy.to(dtype).train(training)
                self.check_dtype(recipe, small.to(dtype))
            for x in (many, self.alternating(5000.0)):
                self.check_dtype(recipe, x.to(dtype))

    def check_mixed_dtypes(self, recipe: Recipe) -> tuple[torch.dtype, ...]:
        """With weights in float32, x of a lower dtype keeps it. Returns those kept under autocast, too."""
        self.copy.float()
        x = self.draw(3, 0, 0.5)
        for dtype in _LOWER_DTYPES[1:]:
            self.check_dtype(recipe, x.to(dtype))
        return tuple(dtype for dtype in (torch.float32, AUTOCAST_DTYPE) if self.is_kept(recipe, x.to(dtype)))

    def is_kept(self, recipe: Recipe, x: Tensor) -> bool:
        """Whether its dtype is kept under the CPU's autocast and under CUDA's."""
        try:
            for device in ("cpu", "cuda"):
                self.check_dtype(recipe, x, device)
        except Exception:  # it may be one of the trial's: then its own forward runs, which is always right
            return False
        return True

    def check_dtype(self, recipe: Recipe, x: Tensor, autocast: Optional[str] = None) -> None:
        with torch.no_grad(), parametrize.cached():
            try:
                y = self.run(x, autocast)
            except LeftAlone:
                raise
            except Exception:
                if x.dtype == torch.float32 or autocast:
                    raise
                return
            if y.dtype != x.dtype:
                raise LeftAlone(f"it returns {y.dtype} for {x.dtype}")
            coarsest = AUTOCAST_DTYPE if autocast else x.dtype
            expected, moved = self.in_double(recipe, x, 0), self.in_double(recipe, x, torch.finfo(coarsest).eps)
        # Thirty-two roundings, of the largest or of x: the steps of two ways to compute the same.
        rounding = torch.finfo(coarsest).eps * expected.abs().max()
        rounding = torch.maximum(rounding, (moved - expected).abs().max()) + torch.finfo(coarsest).tiny
        if not float((y - expected).abs().max()) <= 32 * float(rounding):
            raise LeftAlone(f"it computes something else in {x.dtype}")

    def in_double(self, recipe: Recipe, x: Tensor, change: float) -> Tensor:
        """The reference in float64, for means of x that are larger or smaller by ``change``, at random."""
        maps = x.double().movedim(self.channels_dim, 1)
        signs = torch.randint(2, (*maps.shape[:2], *[1] * (maps.dim() - 2)), generator=self.generator) * 2 - 1
        parameters = (p.double() for p in recipe.parameters(self.copy, refresh=False))
        y = getattr(reference, recipe.variant)(maps * (1 + change * signs), *parameters, **recipe.options)
        return self.turned(y)

    def alternating(self, size: float) -> Tensor:
        """Large numbers of both signs, with a mean of zero."""
        size_of_maps = _SIZES[self.rank][4]
        signs = torch.tensor([size, -size], dtype=torch.float64).repeat(math.prod(size_of_maps) // 2)
        return self.turned(signs.view(1, 1, *size_of_maps).repeat_interleave(self.channels, 1)).contiguous()


def _error(y: Tensor, expected: Tensor) -> float:
    """The largest difference where one is beyond rounding in float64, else 0."""
    y, expected = y.detach(), expected.detach()
    if y.dtype != expected.dtype or not torch.equal(y.isnan(), expected.isnan()):
        return math.inf
    difference = torch.where(y == expected, 0, y - expected).abs().nan_to_num(0)
    beyond = difference > 1e-9 * expected.abs() + 1e-280
    return float(difference[beyond].max()) if beyond.any() else 0.0
