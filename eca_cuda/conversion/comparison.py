# SPDX-License-Identifier: MIT
"""Tries a copy of a module on many inputs, to find out whether it computes what a recipe says.

The copy has random weights and shares nothing with the module. It runs in training and in evaluation, with many samples
and one, on small, saturating, huge and non-finite x, in four dtypes. Outputs, their dtype and strides, and gradients of
x and of every parameter must be those of the reference, and x must not change. In float64, where casts are skipped,
the numbers must agree to 1e-9, so that a clamp at 20 or an epsilon of 1e-5 is detected.
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

# Spatial sizes of x by its rank (images, sequences, volumes): two small ones, one position, many positions, and 240,
# whose sums exceed the range of float16 (check_dtypes).
_SIZES = {
    4: ((5, 6), (4, 7), (1, 1), (66, 70), (15, 16)),
    3: ((25,), (7,), (1,), (4620,), (240,)),
    5: ((3, 4, 5), (2, 3, 3), (1, 1, 1), (7, 34, 36), (4, 6, 10)),
}
_MANY_SAMPLES, _MANY_CHANNELS = 40, 520
USE_INDUCTOR = "Use eca_cuda.inductor.enable(): it finds ECA in compiled graphs, however modules divide it"
_LOWER_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def compare(module: nn.Module, candidates: list[Recipe]) -> Recipe:
    """The candidate that ``module`` computes, for x of at least one rank. Raises LeftAlone with the reason."""
    takes, notes = _Arguments(own_class(module)), Notes(module)
    found: dict[int, Recipe] = {}
    refusals: list[tuple[int, Exception]] = []  # with the number of outputs that had agreed before
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
    # A LeftAlone says more than an error, which a wrong rank is likely to cause, and a late one more than an early one.
    _, refusal = max(refusals, key=lambda r: (isinstance(r[1], LeftAlone), r[0], not isinstance(r[1], MaybePart)))
    if isinstance(refusal, LeftAlone):
        raise type(refusal)(str(refusal))  # a new one, as its traceback would refer to itself through refusals
    raise MaybePart(f"it could not be tried: {(str(refusal) or type(refusal).__name__).splitlines()[0]}")


class MaybePart(LeftAlone):
    """It does not map x to an output of the same shape, but may be part of a module that does."""


class _Arguments:
    """The arguments of a forward. Apart from x, those without a default must never be read."""

    def __init__(self, kind: type[nn.Module]) -> None:
        if kind.forward is nn.Module.forward:
            raise MaybePart("it has no forward: other code calls its layers")
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
    """The candidate for x of this rank, tried with each number of channels that may be right."""
    for i, c in enumerate(_channels(module)):
        trial = None
        try:
            trial = _Trial(module, takes, notes, rank, channels_dim, c)
            recipe = trial.match(candidates)
            return recipe if i == 0 else replace(recipe, channels=c)
        except Exception as error:  # user code may raise anything; a traceback would keep the model alive
            refusals.append((trial.agreed if trial else 0, error.with_traceback(None)))
            error.__context__ = error.__cause__ = None
            if notes.objection:  # it holds for every x
                break
    return None


def _channels(module: nn.Module) -> list[int]:
    """The number that the layers need; if they need none, a default and then all integer attributes."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv1d, nn.Linear))]
    c = max(m.in_features if isinstance(m, nn.Linear) else m.in_channels for m in layers)
    longest = max(m.kernel_size[0] for m in layers if isinstance(m, nn.Conv1d))
    numbers = {n for m in module.modules() for n in vars(m).values() if type(n) is int and longest < n <= 2**14}
    return [c] if c > 1 else [max(16, 2 * longest), *sorted(numbers, reverse=True)]


class _Trial:
    """Trials of one copy of a module with x of one rank and number of channels."""

    def __init__(
        self, module: nn.Module, takes: _Arguments, notes: Notes, rank: int, channels_dim: int, channels: int
    ) -> None:
        self.takes, self.notes, self.rank, self.channels_dim, self.channels = takes, notes, rank, channels_dim, channels
        self.generator = torch.Generator().manual_seed(0)
        self.fixes_channels = self.asks_for_dtype = False
        self.reported_dtype: Optional[torch.dtype] = None  # the dtype that tensors claim to have
        self.agreed = 0  # the number of outputs that agreed with a candidate
        self.paths = paths_of(module)
        self.copy = replica(module, notes, self.paths, self.generator)

    def match(self, candidates: list[Recipe]) -> Recipe:
        """The candidate that the copy computes for every input."""
        with self.notes.reading():
            candidates = self.agreeing(candidates, self.draw(3, 0, 0.5), "", True, True)
            candidates = self.agreeing_everywhere(candidates)
            if self.asks_for_dtype:
                for self.reported_dtype in _LOWER_DTYPES:
                    candidates = self.agreeing_everywhere(candidates)
                self.reported_dtype = None
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
        """The candidates that the copy computes for all inputs, in training and in evaluation."""
        for where, x, differentiated in self.inputs():
            for training in self.modes():
                candidates = self.agreeing(candidates, x, where, training, differentiated)
        return candidates

    def draw(self, n: int, which: int, scale: float, channels: Optional[int] = None) -> Tensor:
        """Maps whose means vary over the channels by about ``scale``."""
        size = _SIZES[self.rank][which]
        shape = (n, channels or self.channels, *size)
        x, means = (
            torch.randn(s, dtype=torch.float64, generator=self.generator)
            for s in (shape, (*shape[:2], *[1] * len(size)))
        )
        return self.turned((x + means) * scale).contiguous()

    def modes(self) -> tuple[bool, ...]:
        """Training and evaluation; only evaluation if nothing depends on it."""
        has_parametrizations = any(map(parametrize.is_parametrized, self.copy.modules()))
        return (True, False) if self.notes.reads_training or has_parametrizations else (False,)

    def turned(self, x: Tensor) -> Tensor:
        """``x`` with its channels moved to the dimension that the module expects."""
        return x.movedim(1, self.channels_dim)

    def inputs(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Yields a description for messages, x, and whether to compare gradients."""
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
        """Constant maps: zeros and ones, and tiny values."""
        x = torch.ones(2, self.channels, *_SIZES[self.rank][0], dtype=torch.float64)
        x[0, ::2], x[1] = 0, x[1] * 1e-20
        return x

    def run(self, x: Tensor, autocast: Optional[str] = None) -> Tensor:
        """The output of the copy, optionally under a device's autocast. LeftAlone if its forward has other effects."""
        witness = Witness(self.channels, keeps_double=x.dtype == torch.float64, reported_dtype=self.reported_dtype)
        inside = [m for m in map(self.copy.get_submodule, self.paths) if not isinstance(m, HOLDERS)]
        parameters = [(p, p.detach().clone()) for p in self.copy.parameters()]
        before = x.detach().clone()
        with without_side_effects(*inside), under_autocast(autocast), witness:
            y = self.copy.forward(x, **self.takes.given)  # convert replaces forward, not __call__
        if objection := witness.objection or self.notes.objection:
            raise LeftAlone(objection)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise MaybePart(f"its output is not a tensor of the shape of its input. {USE_INDUCTOR}")
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
        """The candidates with the output, and if ``differentiated`` the gradients, of the copy."""
        self.copy.train(training)
        leaf = x.clone().requires_grad_(differentiated)
        x = leaf.clone()  # a forward cannot write into a leaf that requires grad
        # A parametrization computes a weight once, for both.
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
                raise LeftAlone("its forward enables gradients")
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
                raise LeftAlone(f"its gradient of {name} differs{where}: off by {error:.1e}")

    def check_many_channels(self, recipe: Recipe) -> None:
        if not self.fixes_channels:
            x = self.draw(2, 1, 1.0, _MANY_CHANNELS)
            try:
                with torch.no_grad():
                    self.run(x)
            except LeftAlone:
                raise
            except Exception:  # it accepts only the number of channels of the trial
                self.fixes_channels = True
            else:
                self.agreeing([recipe], x, " for many channels", False, False)

    def takes_one_channel(self, recipe: Recipe) -> bool:
        """Whether the recipe holds for a single channel; true if the number of channels is fixed."""
        try:
            return self.fixes_channels or bool(self.agreeing([recipe], self.draw(2, 1, 1.0, 1), "", False, False))
        except Exception:
            return False

    def check_layouts(self, recipe: Recipe) -> None:
        """LeftAlone unless outputs have the strides of x for several orders of dimensions in memory."""
        x = self.draw(3, 1, 0.5)
        dims = range(x.dim())
        for order in {(*dims,), (0, *dims[2:], 1), (*dims[:-2], dims[-1], dims[-2])}:
            turned = x.permute(order).contiguous().permute([order.index(d) for d in dims])
            with torch.no_grad(), parametrize.cached():
                try:
                    y = self.run(turned)
                except LeftAlone:
                    raise
                except Exception:  # x.view() may not accept these strides
                    continue
                if y.stride() != turned.stride():
                    raise LeftAlone(f"its output has strides {y.stride()} for x with strides {turned.stride()}")
                if _error(y, self.reference(recipe, turned)) != 0:
                    raise LeftAlone(f"it computes something else for x with strides {turned.stride()}")

    def check_dtypes(self, recipe: Recipe) -> None:
        """LeftAlone if dtype or values differ in float32, or in float16 and bfloat16 if it runs in these."""
        small, many = self.draw(3, 0, 0.5), self.draw(1, 4, 1.0) + 300
        for dtype in _LOWER_DTYPES:
            for training in self.modes():
                self.copy.to(dtype).train(training)
                self.check_dtype(recipe, small.to(dtype))
            for x in (many, self.alternating(5000.0)):
                self.check_dtype(recipe, x.to(dtype))

    def check_mixed_dtypes(self, recipe: Recipe) -> tuple[torch.dtype, ...]:
        """LeftAlone if x of a lower dtype changes it with float32 weights. Returns the dtypes kept under autocast."""
        self.copy.float()
        x = self.draw(3, 0, 0.5)
        for dtype in _LOWER_DTYPES[1:]:
            self.check_dtype(recipe, x.to(dtype))
        return tuple(dtype for dtype in (torch.float32, AUTOCAST_DTYPE) if self.is_kept(recipe, x.to(dtype)))

    def is_kept(self, recipe: Recipe, x: Tensor) -> bool:
        """Whether y has the dtype of x under the CPU's autocast and under CUDA's."""
        try:
            for device in ("cpu", "cuda"):
                self.check_dtype(recipe, x, device)
        except Exception:  # even if the trial is at fault, running its own forward is right
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
                raise LeftAlone(f"it returns {y.dtype} for x in {x.dtype}")
            coarsest = AUTOCAST_DTYPE if autocast else x.dtype
            expected, moved = self.in_double(recipe, x, 0), self.in_double(recipe, x, torch.finfo(coarsest).eps)
        # Allows thirty-two roundings of the largest output or of x, as two ways to compute the same differ by some.
        rounding = torch.finfo(coarsest).eps * expected.abs().max()
        rounding = torch.maximum(rounding, (moved - expected).abs().max()) + torch.finfo(coarsest).tiny
        if not float((y - expected).abs().max()) <= 32 * float(rounding):
            raise LeftAlone(f"it computes something else in {x.dtype}")

    def in_double(self, recipe: Recipe, x: Tensor, change: float) -> Tensor:
        """The reference in float64, with each map scaled by ``1 + change`` or ``1 - change`` at random."""
        maps = x.double().movedim(self.channels_dim, 1)
        signs = torch.randint(2, (*maps.shape[:2], *[1] * (maps.dim() - 2)), generator=self.generator) * 2 - 1
        parameters = (p.double() for p in recipe.parameters(self.copy, refresh=False))
        y = getattr(reference, recipe.variant)(maps * (1 + change * signs), *parameters, **recipe.options)
        return self.turned(y)

    def alternating(self, size: float) -> Tensor:
        """Maps of large numbers with alternating signs and a mean of zero."""
        size_of_maps = _SIZES[self.rank][4]
        signs = torch.tensor([size, -size], dtype=torch.float64).repeat(math.prod(size_of_maps) // 2)
        return self.turned(signs.view(1, 1, *size_of_maps).repeat_interleave(self.channels, 1)).contiguous()


def _error(y: Tensor, expected: Tensor) -> float:
    """The largest difference beyond rounding in float64, or 0."""
    y, expected = y.detach(), expected.detach()
    if y.dtype != expected.dtype or not torch.equal(y.isnan(), expected.isnan()):
        return math.inf
    difference = torch.where(y == expected, 0, y - expected).abs().nan_to_num(0)
    beyond = difference > 1e-9 * expected.abs() + 1e-280
    return float(difference[beyond].max()) if beyond.any() else 0.0
